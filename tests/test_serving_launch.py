"""The installed commands: the names in pyproject.toml start them, and shells complete them."""

import importlib
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.fakes import write_tiny_bundle
from tests.server_process import environment, running_server


def scripts(repository: Path) -> dict[str, str]:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    return dict(project["scripts"])


@pytest.fixture
def installed(repository: Path, tmp_path: Path) -> dict[str, str]:
    """An environment in which each script is a command, as pip would write it."""
    for name, where in scripts(repository).items():
        module, function = where.split(":")
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        code = f"from {module} import {function}\n{function}()\n"
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(0o755)
    return environment(PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_every_script_names_a_function(repository: Path) -> None:
    assert scripts(repository).keys() == {"simple-diffusion", "simple-diffusion-server"}
    for where in scripts(repository).values():
        module, function = where.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def completed(installed: dict[str, str], line: str) -> set[str]:
    """What bash offers for the last word of a line, after the README's way to set it up."""
    program = shlex.split(line)[0]
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    words = line.split(" ")
    script = f"""
        eval "$({variable}=bash_source {program})"
        COMP_WORDS=({" ".join(map(shlex.quote, words))}) COMP_CWORD={len(words) - 1}
        {variable[:-9].lower()}_completion {program} {shlex.quote(words[-1])}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(
        ["bash", "-c", script], env=installed, capture_output=True, text=True, check=True
    )
    return set(ended.stdout.split())


def test_bash_completes_commands_flags_and_values(installed: dict[str, str]) -> None:
    commands = completed(installed, "simple-diffusion ")
    assert commands == {"generate", "dataset", "health", "models"}
    assert "--guidance-scale" in completed(installed, "simple-diffusion generate --gu")
    formats = completed(installed, "simple-diffusion dataset --format ")
    assert formats == {"idx", "png", "parquet"}
    assert "--max-lanes" in completed(installed, "simple-diffusion-server --max-l")
    assert completed(installed, "simple-diffusion-server --provider c") == {"cpu", "cuda"}


def test_the_servers_command_serves_and_ends_like_the_module(tmp_path: Path) -> None:
    program = ("-c", "from serving.launch import main; main()")
    with running_server(write_tiny_bundle(tmp_path / "tiny"), program=program) as server:
        server.signal(signal.SIGINT)
        assert server.exit_code() == 0
