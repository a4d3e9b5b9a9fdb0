"""The README says what is true: its commands exist, with the flags it gives them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess

PAGES = (
    "README.md",
    "docs/architecture.md",
    "docs/benchmarks.md",
    "docs/capacity.md",
    "docs/client.md",
    "docs/deployment.md",
    "docs/how-it-works.md",
    "docs/http.md",
    "docs/operations.md",
    "docs/promises.md",
    "docs/quality.md",
    "docs/replicas.md",
    "docs/training.md",
)
MAKE_TARGETS = {
    "train": "training.train",
    "export": "export",
    "serve": "serving",
    "demo": "tools/demo.py",
    "evaluate": "evaluation",
}


def commands(repository: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(module or script, the long flags that a page gives it) for every command in a code block."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"```sh\n(.*?)```", (repository / page).read_text(), re.DOTALL)
        for line in "".join(blocks).replace("\\\n", " ").splitlines():
            text = line.split("#")[0]
            if match := re.match(r"make (\w+)(?:.*ARGS=\"?([^\"]*))?", text):
                target, arguments = match.groups()
                if target not in MAKE_TARGETS or not arguments:
                    continue
                program = MAKE_TARGETS[target]
            elif match := re.search(r"-m ([\w.]+)((?: [a-z]+)?.*)", text):
                program, arguments = match.groups()
                if program == "serving.client":
                    command, _, arguments = arguments.strip().partition(" ")
                    program += f" {command}"
            else:
                continue
            found.append((program, tuple(re.findall(r"--[a-z][a-z-]*", arguments))))
    return found


def test_the_pages_give_commands_of_every_program(repository: Path) -> None:
    programs = {program for program, _ in commands(repository)}
    assert programs >= {"training.train", "export", "serving.client generate", "evaluation"}


def test_every_flag_that_a_page_gives_exists(repository: Path) -> None:
    flags: dict[str, set[str]] = {}
    for program, given in commands(repository):
        flags.setdefault(program, set()).update(given)
    for program, used in sorted(flags.items()):
        name, *command = program.split()
        where = [name] if name.endswith(".py") else ["-m", name]
        done = subprocess.run(
            [sys.executable, *where, *command, "--help"],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        known = set(re.findall(r"--[a-z][a-z-]*", done.stdout))
        assert used <= known | {"--help"}, f"{program} does not know {sorted(used - known)}"


@pytest.mark.parametrize("page", PAGES)
def test_every_local_link_leads_somewhere(repository: Path, page: str) -> None:
    text = (repository / page).read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    missing = [link for link in links if not ((repository / page).parent / link).exists()]
    assert not missing


def test_every_module_that_the_architecture_page_names_exists(repository: Path) -> None:
    text = (repository / "docs" / "architecture.md").read_text()
    modules = set(re.findall(r"`((?:serving|diffusion|training|export)\.[a-z_.]+)`", text))
    assert len(modules) > 10
    for module in modules:
        path = repository / Path(*module.split("."))
        is_module = path.with_suffix(".py").is_file() or path.is_dir()
        owner = path.parent.with_suffix(".py")
        is_member = owner.is_file() and path.name in owner.read_text()
        assert is_module or is_member, module


def test_the_python_that_the_readme_gives_runs(
    repository: Path, mnist_server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    [program] = re.findall(
        r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(program.replace("127.0.0.1:50051", mnist_server.target), names)
    assert names["pixels"].shape == (28, 28, 1)
    indices = {int(line.split()[0]) for line in capsys.readouterr().out.splitlines()}
    assert indices == set(range(100)), "every image, and previews of some"
