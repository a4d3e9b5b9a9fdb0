"""The client: pictures where they were asked for, and one readable line when there are none."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result
from google.rpc import error_details_pb2

from serving import refusal
from serving.client import ClientError, DiffusionClient
from serving.client.__main__ import main
from serving.client.diffusion_client import READINESS
from serving.images import decode_png, grid
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.fakes import write_tiny_bundle
from tests.server_process import ServerProcess, environment, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
    with running_server(bundle, flags=("--max-images-per-request", "50")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[DiffusionClient]:
    with DiffusionClient(server.target, timeout_seconds=30) as connected:
        yield connected


def run(target: str, command: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, "--target", target, *map(str, arguments)])


@pytest.fixture
def nobody() -> Iterator[str]:
    """HOST:PORT where nobody listens, and nobody will."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"


# The library


def test_a_generation_holds_the_images_and_how_they_were_made(client: DiffusionClient) -> None:
    made = client.generate(
        1, 6, seed=5, sampler="ddim", num_steps=7, guidance_scale=1.5, first_index=2, model="tiny"
    )
    assert [image.index for image in made.images] == [2, 3, 4, 5, 6, 7]
    assert all(image.pixels.shape == (4, 4, 1) for image in made.images)
    assert all(image.pixels.dtype == np.uint8 for image in made.images)
    assert (made.label, made.seed, made.model, made.model_version) == (1, 5, "tiny", "1.0.0")
    assert (made.sampler, made.num_steps, made.guidance_scale) == ("ddim", 7, 1.5)
    assert made.queue_seconds >= 0
    assert made.compute_seconds > 0


def test_a_drawn_seed_draws_the_same_again(client: DiffusionClient) -> None:
    drawn = client.generate(0, 3)
    again = client.generate(0, 3, seed=drawn.seed)
    assert [image.pixels.tobytes() for image in again.images] == [
        image.pixels.tobytes() for image in drawn.images
    ]


def test_violations_are_listed(client: DiffusionClient) -> None:
    with pytest.raises(ClientError) as caught:
        client.generate(99, 51)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.violations == (
        ("label", "99 is not in 0..2"),
        ("count", "51 is not in 1..50"),
    )
    assert "\n" not in str(caught.value)


def test_an_unknown_sampler_is_refused_before_anything_is_sent(client: DiffusionClient) -> None:
    with pytest.raises(ValueError, match="ddpm, ddim, dpmpp_2m"):
        client.generate(0, sampler="euler")


def test_health_and_models_are_what_the_server_says(client: DiffusionClient) -> None:
    assert client.health() == client.health("") == "SERVING"
    with pytest.raises(ClientError, match="no service 'nobody'"):
        client.health("nobody")
    models = client.list_models()
    assert [model.name for model in models.models] == ["tiny"]
    client.wait_until_ready(5)


def test_nobody_there_is_said_with_what_to_do(nobody: str) -> None:
    with DiffusionClient(nobody) as client, pytest.raises(ClientError) as caught:
        client.generate(0)
    port = nobody.rpartition(":")[2]
    assert str(caught.value) == (
        f"no server answers at {nobody}; start one with: python -m serving --port {port}"
    )
    assert caught.value.code == "UNAVAILABLE"


def test_waiting_for_a_server_that_never_comes_ends(nobody: str) -> None:
    begin = time.monotonic()
    with DiffusionClient(nobody) as client, pytest.raises(ClientError, match="no server answers"):
        client.wait_until_ready(0.5)
    assert time.monotonic() - begin < 10


# Retries, against a server that does as it is told

Answer = Callable[[grpc.ServicerContext], pb.GenerateResponse]


class Scripted:
    """Answers Generate with its answers one after the other, and notes when it was asked."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers = answers
        self.asked_seconds: list[float] = []

    def generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> pb.GenerateResponse:
        self.asked_seconds.append(time.monotonic())
        return self.answers[min(len(self.asked_seconds), len(self.answers)) - 1](context)


def refuse(error: refusal.RefusedError) -> Answer:
    def answer(context: grpc.ServicerContext) -> pb.GenerateResponse:
        context.set_trailing_metadata(error.trailing_metadata)
        context.abort(error.code, error.message)
        raise AssertionError

    return answer


def accept(_: grpc.ServicerContext) -> pb.GenerateResponse:
    return pb.GenerateResponse(seed=12)


@pytest.fixture
def scripted() -> Iterator[Callable[[list[Answer]], tuple[Scripted, str]]]:
    servers = []

    def start(answers: list[Answer]) -> tuple[Scripted, str]:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        servicer = Scripted(answers)
        method = grpc.unary_unary_rpc_method_handler(
            servicer.generate,
            request_deserializer=pb.GenerateRequest.FromString,
            response_serializer=pb.GenerateResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(READINESS, {"Generate": method})
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return servicer, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0).wait()


def test_a_refusal_is_retried_when_the_server_said_so(scripted: Callable) -> None:
    servicer, target = scripted([refuse(refusal.queue_full(9, 9, 0.6)), accept])
    with DiffusionClient(target, timeout_seconds=20) as client:
        assert client.generate(0).seed == 12
    first, second = servicer.asked_seconds
    assert 0.55 < second - first < 5


def test_an_unavailable_server_is_tried_again(scripted: Callable) -> None:
    servicer, target = scripted([refuse(refusal.unavailable("starting"))] * 2 + [accept])
    with DiffusionClient(target, timeout_seconds=20) as client:
        assert client.generate(0).seed == 12
    assert len(servicer.asked_seconds) == 3


def test_retries_end_and_the_refusal_says_when_to_come_back(scripted: Callable) -> None:
    servicer, target = scripted([refuse(refusal.queue_full(9, 9, 0.05))])
    with (
        DiffusionClient(target, timeout_seconds=20) as client,
        pytest.raises(ClientError, match="the queue is full") as caught,
    ):
        client.generate(0)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert caught.value.retry_after_seconds == 0.05
    assert len(servicer.asked_seconds) == 5


def test_what_is_wrong_for_good_is_not_retried(scripted: Callable) -> None:
    servicer, target = scripted([refuse(refusal.internal("abc")), accept])
    with (
        DiffusionClient(target, timeout_seconds=20) as client,
        pytest.raises(ClientError, match="error id abc"),
    ):
        client.generate(0)
    assert len(servicer.asked_seconds) == 1


def test_retries_can_be_turned_off(scripted: Callable) -> None:
    servicer, target = scripted([refuse(refusal.unavailable("draining")), accept])
    with (
        DiffusionClient(target, retry=False) as client,
        pytest.raises(ClientError, match="this server is draining"),
    ):
        client.generate(0)
    assert len(servicer.asked_seconds) == 1


def test_an_answer_that_does_not_come_in_time_is_an_error(scripted: Callable) -> None:
    def sleep(_: grpc.ServicerContext) -> pb.GenerateResponse:
        time.sleep(1)
        return pb.GenerateResponse()

    _, target = scripted([sleep])
    with (
        DiffusionClient(target) as client,
        pytest.raises(ClientError, match="did not come in time") as caught,
    ):
        client.generate(0, timeout_seconds=0.2)
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_another_kind_of_server_is_recognised(scripted: Callable) -> None:
    _, target = scripted([accept])
    with (
        DiffusionClient(target) as client,
        pytest.raises(ClientError, match="not a simple-diffusion server"),
    ):
        client.health()


def test_an_error_with_details_of_an_unknown_kind_is_still_an_error(scripted: Callable) -> None:
    error = refusal.RefusedError(
        grpc.StatusCode.INTERNAL, "odd", details=[error_details_pb2.Help()]
    )
    _, target = scripted([refuse(error)])
    with DiffusionClient(target) as client, pytest.raises(ClientError, match="odd"):
        client.generate(0)


# The command line


def test_generate_writes_a_grid_of_exactly_the_images(
    server: ServerProcess, client: DiffusionClient, tmp_path: Path
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
    server: ServerProcess, client: DiffusionClient, tmp_path: Path
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
    server: ServerProcess, client: DiffusionClient, tmp_path: Path
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
