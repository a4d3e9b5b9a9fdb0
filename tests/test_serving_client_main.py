"""The command `python -m serving.client`: pictures where they were asked for, or one line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from serving import refusal
from serving.client import Client
from serving.client.__main__ import main
from serving.images import decode_png, grid
from tests.client_harness import (
    Certificates,
    ScriptedServer,
    nobody_listening,
    refuse,
    stream_of,
)
from tests.fakes import write_tiny_bundle
from tests.server_process import ServerProcess, environment, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
    with running_server(bundle, flags=("--max-images-per-request", "50")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target, timeout_seconds=30) as connected:
        yield connected


@pytest.fixture
def nobody() -> Iterator[str]:
    with nobody_listening() as target:
        yield target


def run(target: str, command: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, "--target", target, *map(str, arguments)])


def test_generate_writes_a_grid_of_exactly_the_images(
    server: ServerProcess, client: Client, tmp_path: Path
) -> None:
    output = tmp_path / "new directory" / "ones.png"
    ended = run(
        server.target, "generate", "--label", 1, "--count", 9, "--seed", 3, "--output", output
    )
    assert ended.exit_code == 0, ended.output
    expected = grid([image.pixels for image in client.generate(1, 9, seed=3).images])
    assert np.array_equal(decode_png(output.read_bytes()), expected)
    for part in (str(output), "9 images", "images/s", "tiny 1.0.0", "seed 3"):
        assert part in ended.output


def test_generate_writes_a_row_for_each_label(
    server: ServerProcess, client: Client, tmp_path: Path
) -> None:
    output = tmp_path / "all.png"
    labels = [argument for label in (0, 1, 2) for argument in ("--label", label)]
    ended = run(server.target, "generate", *labels, "--count", 4, "--seed", 3, "--output", output)
    assert ended.exit_code == 0, ended.output
    images = [
        image.pixels for label in range(3) for image in client.generate(label, 4, seed=3).images
    ]
    assert np.array_equal(decode_png(output.read_bytes()), grid(images, columns=4))


def test_generate_writes_one_file_for_each_image(
    server: ServerProcess, client: Client, tmp_path: Path
) -> None:
    options = ("--sampler", "dpmpp_2m", "--num-steps", 6, "--guidance-scale", 2.5)
    more = ("--first-index", 8, "--model", "tiny", "--timeout-seconds", 20)
    ended = run(
        server.target, "generate", "--label", 2, "--count", 3, "--seed", 4,
        "--output-dir", tmp_path, *options, *more,
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    written = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.png")}
    assert sorted(written) == ["2/00008.png", "2/00009.png", "2/00010.png"]
    made = client.generate(
        2, 3, seed=4, sampler="dpmpp_2m", num_steps=6, guidance_scale=2.5, first_index=8
    )
    for image in made.images:
        file = written[f"2/{image.index:05d}.png"]
        assert np.array_equal(decode_png(file.read_bytes()), image.pixels)


def test_a_seed_that_was_drawn_is_printed(server: ServerProcess, tmp_path: Path) -> None:
    outputs = []
    for name in ("first.png", "second.png"):
        seed = ("--seed", outputs[0].split()[-1]) if outputs else ()
        ended = run(server.target, "generate", "--label", 0, "--output", tmp_path / name, *seed)
        outputs.append(ended.output)
    first, second = (tmp_path / name for name in ("first.png", "second.png"))
    assert first.read_bytes() == second.read_bytes()


def test_bad_fields_are_listed_one_per_line(server: ServerProcess, tmp_path: Path) -> None:
    ended = run(
        server.target, "generate", "--label", 8, "--count", 60, "--output", tmp_path / "x.png"
    )
    assert ended.exit_code == 1
    assert ended.stderr.splitlines() == [
        "error: INVALID_ARGUMENT: the server refuses the request",
        "  label: 8 is not in 0..2",
        "  count: 60 is not in 1..50",
    ]
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("command", "arguments"),
    [("generate", ("--label", 0, "--output", "never.png")), ("health", ()), ("models", ())],
)
def test_no_server_is_one_line_and_exit_code_1(
    nobody: str, command: str, arguments: tuple[object, ...]
) -> None:
    ended = run(nobody, command, *arguments)
    assert ended.exit_code == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: no server answers at {nobody}; start one with: python -m")


def test_a_file_that_cannot_be_written_is_one_line(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ended = run(server.target, "generate", "--label", 0, "--output", tmp_path / "file" / "x.png")
    assert ended.exit_code == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: cannot write")


def test_nowhere_to_write_is_a_usage_error(server: ServerProcess) -> None:
    ended = run(server.target, "generate", "--label", 0)
    assert ended.exit_code == 2
    assert "--output" in ended.stderr


def test_health_says_alive_and_ready(server: ServerProcess) -> None:
    ended = run(server.target, "health", "--wait-seconds", 5)
    assert ended.exit_code == 0
    assert ended.output == "process SERVING\nready   SERVING\n"


def test_models_lists_names_shapes_defaults_and_labels(server: ServerProcess) -> None:
    ended = run(server.target, "models")
    assert ended.exit_code == 0
    assert ended.output.splitlines() == [
        "tiny 1.0.0: 4x4 grey, ddpm 4 of 20 steps, guidance 1",
        "  0  zero",
        "  1  one",
        "  2  two",
        "at most 50 images per request",
    ]


# For programs


def answer(target: str, command: str, *arguments: object) -> dict[str, Any]:
    """What a command with --json prints, all of it."""
    ended = run(target, command, *arguments, "--json")
    assert ended.exit_code == 0, ended.output
    assert not ended.stderr
    answered: dict[str, Any] = json.loads(ended.stdout)
    return answered


def test_generate_tells_programs_which_files_and_how_they_were_made(
    server: ServerProcess, tmp_path: Path
) -> None:
    told = answer(
        server.target, "generate", "--label", 2, "--label", 0, "--count", 2, "--seed", 4,
        "--first-index", 3, "--num-steps", 6, "--output-dir", tmp_path,
    )  # fmt: skip
    assert [Path(file).relative_to(tmp_path).as_posix() for file in told["files"]] == [
        "2/00003.png", "2/00004.png", "0/00003.png", "0/00004.png",
    ]  # fmt: skip
    assert [generation["label"] for generation in told["generations"]] == [2, 0]
    made = told["generations"][0]
    assert (made["seed"], made["num_steps"], made["sampler"]) == (4, 6, "ddpm")
    assert (made["first_index"], made["count"], made["model"]) == (3, 2, "tiny")
    assert made["compute_seconds"] > 0
    assert told["seconds"] > 0


def test_models_tells_programs_all_that_the_server_says(
    server: ServerProcess, client: Client
) -> None:
    told = answer(server.target, "models")
    [model] = client.models().models
    assert told["models"][0]["label_names"] == list(model.label_names)
    assert told["models"][0]["default_sampler"] == "ddpm"
    assert told["max_images_per_request"] == 50


def test_health_tells_programs_about_each_server(server: ServerProcess) -> None:
    each = {"target": server.target, "process": "SERVING", "ready": "SERVING"}
    assert answer(server.target, "health") == {"ready": True, "servers": [each]}
    with ScriptedServer().running() as other:
        other.serving = False
        ended = run(f"{server.target},{other.target}", "health", "--json")
    assert ended.exit_code == 1
    told = json.loads(ended.stdout)
    assert [each["ready"] for each in told["servers"]] == ["SERVING", "NOT_SERVING"]
    assert told["ready"] is False


def test_dataset_tells_programs_its_card(server: ServerProcess, tmp_path: Path) -> None:
    flags = ("--count", 6, "--output", tmp_path / "synthetic")
    told = answer(server.target, "dataset", *flags)
    card = json.loads((tmp_path / "synthetic" / "dataset.json").read_text())
    assert (told["card"], told["drawn"]) == (card, 7)
    again = answer(server.target, "dataset", *flags)
    assert (again["card"], again["drawn"]) == (card, 0)


def test_failures_are_told_to_programs_too(
    server: ServerProcess, nobody: str, tmp_path: Path
) -> None:
    ended = run(server.target, "generate", "--label", 8, "--output", tmp_path / "x", "--json")
    assert ended.exit_code == 1
    assert not ended.stdout
    told = json.loads(ended.stderr)["error"]
    assert told["code"] == "INVALID_ARGUMENT"
    assert told["violations"] == [{"field": "label", "description": "8 is not in 0..2"}]
    assert told["request_id"]
    assert json.loads(run(nobody, "models", "--json").stderr)["error"]["code"] == "UNAVAILABLE"
    (tmp_path / "file").touch()
    ended = run(server.target, "dataset", "--output", tmp_path / "file", "--json")
    assert "is not a folder" in json.loads(ended.stderr)["error"]["message"]


def test_every_command_can_speak_to_programs() -> None:
    for name, command in main.commands.items():
        assert "as_json" in {parameter.name for parameter in command.params}, name


# How it connects


def test_health_of_several_servers_names_each_and_asks_for_all(server: ServerProcess) -> None:
    with ScriptedServer().running() as other:
        ended = run(f"{server.target},{other.target}", "health")
        assert ended.exit_code == 0
        ready = "process SERVING\nready   SERVING\n"
        assert ended.output == f"{server.target}\n{ready}{other.target}\n{ready}"
        other.serving = False
        assert run(f"{server.target},{other.target}", "health").exit_code == 1


def test_tls_and_a_token_are_flags(tmp_path: Path) -> None:
    theirs = Certificates(tmp_path)
    token_file = tmp_path / "token"
    token_file.write_text("s3cret\n")
    flags = ("--tls-ca", theirs.ca_file, "--token-file", token_file)
    with ScriptedServer(streams=[stream_of()]).running(credentials=theirs.credentials()) as server:
        asked = ("generate", "--label", 0, "--output", tmp_path / "x.png")
        assert run(server.target, *asked, *flags).exit_code == 0
        assert run(server.target, *asked, "--max-attempts", 1).exit_code == 1
        assert run(server.target, *asked, "--max-attempts", 1, "--tls").exit_code == 1
    [sent] = server.metadata
    assert sent["authorization"] == "Bearer s3cret"


def test_attempts_and_the_time_for_them_are_flags(tmp_path: Path) -> None:
    starting = refuse(refusal.unavailable("starting"))
    asked = ("generate", "--label", 0, "--output", tmp_path / "x.png")
    with ScriptedServer(streams=[starting]).running() as server:
        ended = run(server.target, *asked, "--max-attempts", 2)
        assert ended.stderr == "error: this server is starting; try again later, or another one\n"
        assert len(server.requests) == 2
    with ScriptedServer(streams=[starting, starting, stream_of()]).running() as server:
        flags = ("--wait-for-ready", "--timeout-seconds", 20, "--max-attempts", 1)
        assert run(server.target, *asked, *flags).exit_code == 0
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--target", "localhost:1,"), "target must be HOST:PORT"),
        (("--tls-cert", __file__), "needs its key"),
        (("--token-file", __file__), "a token must be"),
        (("--max-attempts", "0"), "--max-attempts"),
        (("--tls-ca", "nowhere.pem"), "'nowhere.pem' does not exist"),
    ],
)
def test_flags_that_make_no_sense_are_a_usage_error(flags: tuple[str, ...], message: str) -> None:
    ended = CliRunner().invoke(main, ["models", *flags])
    assert ended.exit_code == 2
    assert message in ended.stderr


def test_the_command_runs_as_a_module_without_the_servers_libraries(nobody: str) -> None:
    code = (
        "import sys, runpy\n"
        "for name in ('onnxruntime', 'uvicorn', 'starlette', 'prometheus_client'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['serving.client', 'health', '--target', sys.argv[1]]\n"
        "runpy.run_module('serving.client', run_name='__main__')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, nobody],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: no server answers at {nobody}")
