"""The repository as a whole: what is in it, what it says, and that its parts agree."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGES = ("diffusion", "training", "export", "evaluation", "serving")
PINNED = ("full", "serving", "serving-gpu", "training")

# Written so that this file does not match its own patterns.
REGISTRIES = re.compile(
    rb"pypi[.]org|pythonhosted[.]org|npmjs[.]org|crates[.]io|proxy[.]golang[.]org"
    rb"|deb[.]debian[.]org|download[.]pytorch[.]org|conda[.]anaconda[.]org"
)
OWN_PATHS = re.compile(rb"(?<![\w.}/-])/(?:home|root|tmp|work|Users)[/][\w.]")


def committed_files(root: Path) -> list[Path]:
    """Every file that is in git or would be added by `git add .`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = (root / name for name in listed.stdout.split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def pins(root: Path, name: str) -> dict[str, set[str]]:
    """Package -> versions in requirements/NAME.txt (two where they differ by Python version)."""
    found: dict[str, set[str]] = {}
    text = (root / "requirements" / f"{name}.txt").read_text()
    for package, version in re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE):
        found.setdefault(package, set()).add(version)
    return found


@pytest.mark.parametrize(
    ("what", "pattern"), [("a package registry", REGISTRIES), ("a machine's paths", OWN_PATHS)]
)
def test_no_file_names(repository: Path, what: str, pattern: re.Pattern[bytes]) -> None:
    found = [
        f"{path.relative_to(repository)}: {match.group().decode()}"
        for path in committed_files(repository)
        for match in pattern.finditer(path.read_bytes())
    ]
    assert not found, f"these name {what}"


def test_the_patterns_for_what_no_file_names_match() -> None:
    slash = b"/"
    for text in (
        b"see https:/" + slash + b"pypi" + b".org/simple",
        b"files.pythonhosted" + b".org",
    ):
        assert REGISTRIES.search(text)
    for text in (slash + b"tmp/x", b'"' + slash + b"root/.venv", b"in " + slash + b"work/main"):
        assert OWN_PATHS.search(text)
    assert not OWN_PATHS.search(b"github.com" + slash + b"work/x a" + slash + b"tmp/x tmpfs: /tmp")


def test_no_module_is_a_drawer_for_everything(repository: Path) -> None:
    drawers = {"utils", "util", "common", "helpers", "helper", "misc"}
    names = {
        path: {*path.relative_to(repository).parts[:-1], path.stem}
        for path in committed_files(repository)
    }
    assert not [path for path, parts in names.items() if parts & drawers]


def test_every_package_says_that_it_is_typed(repository: Path) -> None:
    packages = [repository / name for name in PACKAGES if (repository / name).is_dir()]
    packages.append(repository / "protos" / "simple_diffusion")
    assert not [package for package in packages if not (package / "py.typed").is_file()]


def test_the_stubs_are_those_of_the_proto(repository: Path, tmp_path: Path) -> None:
    make(repository, "stubs", f"STUBS_DIR={tmp_path}")
    fresh = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(fresh) == 4
    for path in fresh:
        committed = repository / "protos" / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"{committed.name} is stale: make stubs"


def make(root: Path, *arguments: str) -> str:
    """Runs make with this interpreter's environment, as it is, in place of the one it makes."""
    environment = Path(sys.prefix)
    stamps = [f"--old-file={name}/.stamp" for name in (environment, ".venv-serving")]
    completed = subprocess.run(
        ["make", "--no-print-directory", *stamps, f"FULL_ENV={environment}", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_every_make_target_that_a_page_names_exists(repository: Path) -> None:
    named: set[str] = set()
    for page in committed_files(repository):
        if page.suffix == ".md":
            code = re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)
            named |= set(re.findall(r"\bmake ([a-z][a-z-]*)", "\n".join(code)))
    assert named >= {"check", "test"}
    for target in sorted(named):
        make(repository, "--dry-run", target)


def test_make_help_lists_every_target(repository: Path) -> None:
    listed = set(re.findall(r"^  make ([a-z-]+) ", make(repository, "help"), re.MULTILINE))
    text = (repository / "Makefile").read_text()
    targets = set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)).split())
    parts_of_bench = {target for target in targets if target.startswith("bench-")}
    assert listed == targets - parts_of_bench


def test_make_help_says_what_the_variables_are(repository: Path) -> None:
    said = make(repository, "help")
    for variable in ("ARGS", "MODEL", "PYTHON"):
        assert re.search(rf"^  {variable}=", said, re.MULTILINE)
    assert all(len(line) <= 100 for line in said.splitlines())


def test_ci_runs_the_tests_and_the_checks(repository: Path) -> None:
    script = repository / ".ci" / "run"
    lines = script.read_text().splitlines()
    assert {"set -euo pipefail", "make test", "make check"} <= set(lines)
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("name", PINNED)
def test_pinned_requirements_have_hashes_and_no_address(repository: Path, name: str) -> None:
    text = (repository / "requirements" / f"{name}.txt").read_text()
    requirements = re.findall(
        r"^[a-z0-9.-]+==.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+", text, re.MULTILINE
    )
    assert len(requirements) == len(re.findall(r"^[^#\s]", text, re.MULTILINE))
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE)


def test_pinned_requirements_agree_with_each_other(repository: Path) -> None:
    full, serving, gpu, training = (pins(repository, name) for name in PINNED)
    assert serving.items() <= full.items(), "the server would run on versions that no test saw"
    assert training.items() <= full.items(), "training would run on versions that no test saw"
    assert {name: gpu[name] for name in gpu.keys() & serving.keys()}.items() <= serving.items()
    assert gpu["onnxruntime-gpu"] == serving["onnxruntime"]


def test_the_servers_environment_holds_no_training(repository: Path) -> None:
    for name in ("serving", "serving-gpu"):
        held = pins(repository, name).keys()
        assert not held & {"torch", "torchvision", "onnx", "onnxscript", "triton", "safetensors"}
    assert not pins(repository, "serving-gpu").keys() & {"onnxruntime"}
    assert not [name for name in pins(repository, "serving") if name.startswith("nvidia")]


def test_the_lowest_grpc_and_protobuf_allowed_can_load_the_stubs(repository: Path) -> None:
    stubs = repository / "protos" / "simple_diffusion" / "v1"
    grpc_stub = (stubs / "diffusion_pb2_grpc.py").read_text()
    [compiler] = re.findall(r"GRPC_GENERATED_VERSION = '([\d.]+)'", grpc_stub)
    [protobuf] = re.findall(
        r"Protobuf Python Version: (\S+)", (stubs / "diffusion_pb2.py").read_text()
    )
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    edge = "\n".join(project["optional-dependencies"]["edge"])
    lowest = dict(re.findall(r"^([a-z-]+)>=([\d.]+)", edge, re.MULTILINE))
    assert lowest["protobuf"] == protobuf
    assert {version for name, version in lowest.items() if name.startswith("grpcio")} == {compiler}
