"""Who may import whom, and that importing does nothing else.

`make check` reads the same rules from the source (import-linter's contracts in pyproject.toml);
here they are tried by importing.
"""

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

FIRST_PARTY = ("diffusion", "training", "export", "evaluation", "serving", "simple_diffusion")

# The gRPC side of serving. Every other module of serving belongs to the engine, and has to stand
# in the engine's contract: a new module takes a side.
EDGE = {
    "serving.__main__",
    "serving.answers",
    "serving.background",
    "serving.call_metrics",
    "serving.configuration",
    "serving.delivery",
    "serving.exchange",
    "serving.flags",
    "serving.grpc_methods",
    "serving.health",
    "serving.http",
    "serving.http.answers",
    "serving.http.api",
    "serving.http.app",
    "serving.http.body",
    "serving.http.errors",
    "serving.http.event_stream",
    "serving.http.guard",
    "serving.http.negotiation",
    "serving.http.openapi",
    "serving.http.playground",
    "serving.http.receiving",
    "serving.http.schemas",
    "serving.http.server",
    "serving.images",
    "serving.launch",
    "serving.listening",
    "serving.loading",
    "serving.log_writing",
    "serving.logs",
    "serving.metric_families",
    "serving.metric_series",
    "serving.metrics",
    "serving.parsing",
    "serving.ports",
    "serving.ready_file",
    "serving.receiving",
    "serving.reflection",
    "serving.refusal",
    "serving.reloading",
    "serving.request_id",
    "serving.server",
    "serving.service",
    "serving.tls",
    "serving.tokens",
    "serving.tracing",
    "serving.validation",
    "serving.watchdog",
    "serving.watched_files",
}

IMPORT_SERVING_WITHOUT_TORCH = """
import importlib, json, sys
modules, blocked = json.loads(sys.argv[1])
for name in blocked:
    sys.modules[name] = None  # `import name` raises ImportError
for name in modules:
    importlib.import_module(name)
print(json.dumps([name for name in modules if name in sys.modules]))
"""

# Watches what a module of ours does while it is imported. What a third party does while we import
# it is its own affair: between the event and our import statement stands importlib.
IMPORT_AND_WATCH = """
import importlib, json, logging, sys, threading
import pydantic  # looks for its plugins when the first model of a process is made
pydantic.create_model("First")
modules, root = json.loads(sys.argv[1])
OURS = tuple(f"{root}/{name}/" for name in json.loads(sys.argv[2]))
WATCHED = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.system", "os.posix_spawn",
           "subprocess.Popen", "socket.", "threading.", "ctypes.dlopen")
seen = []

def watch(event, arguments):
    if not event.startswith(WATCHED):
        return
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith("<frozen importlib"):
            return
        if path.startswith(OURS):
            seen.append(f"{path}:{frame.f_lineno} {event} {arguments[:1]!r}")
            return
        frame = frame.f_back

def start(thread, start=threading.Thread.start):  # no audit event before Python 3.12
    watch("threading.Thread.start", ())
    start(thread)

threading.Thread.start = start
sys.addaudithook(watch)
handlers = list(logging.getLogger().handlers)
for name in modules:
    importlib.import_module(name)
    if logging.getLogger().handlers != handlers:
        seen.append(f"{name} sets up logging")
        handlers = list(logging.getLogger().handlers)
print(json.dumps(seen))
"""


def modules_of(root: Path, package: str) -> list[str]:
    """The dotted names of a package's modules, the package itself included."""
    base = root / "protos" if package == "simple_diffusion" else root
    names = []
    for path in sorted((base / package).rglob("*.py")):
        parts = path.relative_to(base).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def python(root: Path, program: str, *arguments: object) -> list[str]:
    """Runs a program in an interpreter of its own and returns what it prints, a list in JSON."""
    completed = subprocess.run(
        [sys.executable, "-c", program, *(json.dumps(argument) for argument in arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'protos'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    printed: list[str] = json.loads(completed.stdout.splitlines()[-1])
    return printed


def test_serving_imports_without_torch_onnx_training_export_and_evaluation(
    repository: Path,
) -> None:
    modules = modules_of(repository, "serving")
    blocked = ["torch", "torchvision", "onnx", "onnxscript", "safetensors", "scipy", "matplotlib"]
    blocked += ["training", "export", "evaluation"]
    assert "serving.__main__" in modules
    assert python(repository, IMPORT_SERVING_WITHOUT_TORCH, [modules, blocked]) == modules


def test_importing_reads_no_file_and_starts_no_thread_process_or_logging(repository: Path) -> None:
    modules = {package: modules_of(repository, package) for package in FIRST_PARTY}
    assert all(modules.values())
    names = [name for package in modules.values() for name in package]
    arguments = ([names, str(repository)], [*FIRST_PARTY, "protos/simple_diffusion"])
    assert python(repository, IMPORT_AND_WATCH, *arguments) == []


def test_the_watch_on_imports_sees_what_it_is_for(tmp_path: Path) -> None:
    package = tmp_path / "diffusion"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "quiet.py").write_text("import http.server\n")
    (package / "reads.py").write_text("open(__file__).close()\n")
    (package / "starts.py").write_text("import threading\nthreading.Thread(target=int).start()\n")
    (package / "logs.py").write_text("import logging\nlogging.basicConfig()\n")
    modules = ["diffusion.quiet", "diffusion.reads", "diffusion.starts", "diffusion.logs"]
    seen = python(tmp_path, IMPORT_AND_WATCH, [modules, str(tmp_path)], ["diffusion"])
    assert [line.split("(")[0].removeprefix(f"{package}/").strip() for line in seen] == [
        "reads.py:1 open",
        "starts.py:2 threading.Thread.start",
        "diffusion.logs sets up logging",
    ]


def test_diffusion_imports_numpy_and_the_standard_library_only(repository: Path) -> None:
    imported = set()
    for path in (repository / "diffusion").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"diffusion", "numpy"}


def test_every_module_of_serving_is_of_the_engine_or_of_the_edge(repository: Path) -> None:
    contracts = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]
    [engine] = [
        c["source_modules"] for c in contracts["contracts"] if c["name"].startswith("the engine ")
    ]
    modules = {
        name
        for name in modules_of(repository, "serving")
        if name != "serving" and not name.startswith("serving.client")
    }
    assert modules == EDGE | set(engine)
    assert not EDGE & set(engine)
