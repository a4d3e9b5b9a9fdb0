"""Every command of docs/http.md runs, against a real server."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from serving.images import decode_png
from tests.http_harness import events
from tests.server_process import ServerProcess

PAGE = Path(__file__).resolve().parent.parent / "docs" / "http.md"


def commands() -> list[str]:
    """The commands of the page, one a string."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in re.split(r"(?<!\\)\n(?=\S)", block.strip())]


def run(command: str, server: ServerProcess, directory: Path) -> str:
    here = command.replace("127.0.0.1:8080", f"127.0.0.1:{server.http_port}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here.replace("curl ", "curl --fail ")],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{here}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("number", range(len(commands())))
def test_a_command_of_the_page_runs_and_its_answer_is_what_the_page_says(
    mnist_server: ServerProcess, tmp_path: Path, number: int
) -> None:
    command = commands()[number]
    output = run(command, mnist_server, tmp_path)
    if "event-stream" in command:
        kinds = [kind for kind, _ in events(output)]
        assert kinds.count("image") == 2
        assert kinds[-1] == "summary"
    elif "v1/models" in command:
        assert json.loads(output)["models"][0]["name"] == "mnist"
    elif "sevens.png" in command:
        assert decode_png((tmp_path / "sevens.png").read_bytes()).shape == (122, 122, 1)
    elif "7.png" in command:
        assert decode_png((tmp_path / "7.png").read_bytes()).shape == (28, 28, 1)
    elif "headers.txt" in command:
        assert "x-request-id: from-the-docs" in (tmp_path / "headers.txt").read_text()
        assert len(json.loads((tmp_path / "answer.json").read_text())["images"]) == 1
    else:
        assert len(json.loads(output)["images"]) == 4


def test_the_page_has_commands_for_every_kind_of_answer() -> None:
    text = "\n".join(commands())
    assert all(kind in text for kind in ("image/png", "text/event-stream", "base64", "v1/models"))
