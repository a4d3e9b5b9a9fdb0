"""The life of a server process: it starts or says why not, is ready when it is, drains, exits."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import onnxruntime
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from serving import server as server_module
from serving import watchdog
from serving.__main__ import main, serve
from serving.client import Client, ClientError, Generation
from serving.configuration import ServerConfig
from serving.engine import Engine
from serving.loading import LoadedModel, load_models
from serving.onnx_session import RUNTIME_VERSION
from serving.server import Server
from simple_diffusion.v1 import diffusion_pb2 as pb
from simple_diffusion.v1.diffusion_pb2_grpc import DiffusionServiceStub
from tests.fakes import unet_graph, write_tiny_bundle
from tests.server_process import ServerProcess, environment, run_server, running_server
from tests.server_vitals import vitals

LONG_STEPS = 250  # with 64 images of the slow bundle: about a second


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(
        tmp_path_factory.mktemp("bundles") / "slow",
        name="slow",
        image_shape=(1, 28, 28),
        num_train_timesteps=LONG_STEPS,
    )


def client(server: ServerProcess) -> Client:
    return Client(server.target, timeout_seconds=60, retry=None)


def pixels(generation: Generation) -> list[bytes]:
    return [image.pixels.tobytes() for image in generation.images]


def until(condition: Callable[[], bool], timeout_seconds: float = 20.0) -> None:
    end_seconds = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < end_seconds, "it never came true"
        time.sleep(0.01)


# Serving


def test_a_server_serves_and_its_pages_and_counters_say_so(tiny: Path) -> None:
    with running_server(tiny) as server, client(server) as caller:
        assert caller.health() == caller.health("") == "SERVING"
        assert [server.get(path)[0] for path in ("/livez", "/readyz")] == [200, 200]
        assert len(caller.generate(2, 5).images) == 5
        with pytest.raises(ClientError, match=r"3 is not in 0\.\.2"):
            caller.generate(3)
        status, body = server.get("/metrics")
        assert status == 200
        samples = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }
        assert samples["diffusion_ready",] == 1
        assert samples["diffusion_images_total", "tiny", "two"] == 5
        assert samples["diffusion_requests_started_total", "Generate"] == 2
        assert samples["diffusion_requests_finished_total", "Generate", "OK"] == 1
        assert samples["diffusion_requests_finished_total", "Generate", "INVALID_ARGUMENT"] == 1
        assert samples["diffusion_requests_refused_total", "invalid_argument"] == 1
        info = ("1.0.0", RUNTIME_VERSION, "cpu", "tiny")
        assert samples["diffusion_model_info", *sorted(info)] == 1
        assert samples["diffusion_self_test_bit_equal", "tiny"] == 1
        lanes = samples["diffusion_lanes_capacity", "tiny"]
        assert 1 <= lanes <= 256
        assert f"tiny 1.0.0: {lanes:.0f} lanes" in server.log
        assert "; rows per second by lanes" in server.log
        assert samples["diffusion_engine_step_rows_sum", "tiny"] == 5 * 4
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
        assert "Traceback" not in server.log


def test_two_clients_at_once_get_the_pixels_that_each_gets_alone_also_after_a_restart(
    slow: Path,
) -> None:
    def one(server: ServerProcess) -> Generation:
        with client(server) as caller:
            return caller.generate(1, 20, seed=3, num_steps=30)

    def other(server: ServerProcess) -> Generation:
        with client(server) as caller:
            return caller.generate(2, 9, seed=4, sampler="dpmpp_2m", num_steps=40, guidance_scale=2)

    with running_server(slow, flags=("--num-threads", "1")) as server:
        alone = [pixels(one(server)), pixels(other(server))]
    with (
        running_server(slow, flags=("--num-threads", "2", "--max-lanes", "24")) as server,
        ThreadPoolExecutor() as threads,
    ):
        crowd = [threads.submit(ask, server) for ask in (one, other)]
        assert [pixels(each.result()) for each in crowd] == alone


def test_the_embedded_model_tells_how_often_each_label_was_trained(
    mnist_server: ServerProcess,
) -> None:
    with client(mnist_server) as caller:
        [model] = caller.models().models
    assert len(model.train_label_counts) == 10
    assert sum(model.train_label_counts) == 60_000


def test_several_models_of_other_shapes_serve_side_by_side(tiny: Path, tmp_path: Path) -> None:
    colour = write_tiny_bundle(
        tmp_path / "colour",
        name="colour",
        image_shape=(3, 8, 6),
        label_names=("T-shirt/top", "Bag"),
    )
    with running_server(colour, tiny) as server, client(server) as caller:
        models = caller.models().models
        assert [model.name for model in models] == ["colour", "tiny"]
        assert list(models[0].label_names) == ["T-shirt/top", "Bag"]
        assert caller.generate(1).images[0].pixels.shape == (8, 6, 3)
        assert caller.generate(1, model="tiny").images[0].pixels.shape == (4, 4, 1)
        with pytest.raises(ClientError, match="this server has colour, tiny"):
            caller.generate(0, model="other")


def test_every_flag_is_an_environment_variable_too(tiny: Path) -> None:
    variables = {
        "SIMPLE_DIFFUSION_MODEL": str(tiny),
        "SIMPLE_DIFFUSION_MAX_IMAGES_PER_REQUEST": "3",
        "SIMPLE_DIFFUSION_LOG_LEVEL": "debug",
    }
    with running_server(variables=variables) as server, client(server) as caller:
        assert caller.models().max_images_per_request == 3
        with pytest.raises(ClientError, match=r"count: 4 is not in 1\.\.3"):
            caller.generate(0, 4)
        assert "DEBUG" in server.log


def test_the_ready_file_says_where_the_server_is_while_it_is_there(
    tiny: Path, tmp_path: Path
) -> None:
    ready_file = tmp_path / "ready"
    ready_file.write_text("of a server that was killed")
    with running_server(tiny, flags=("--ready-file", str(ready_file))) as server:
        until(ready_file.exists)
        assert json.loads(ready_file.read_text()) == {
            "host": "127.0.0.1",
            "grpc_port": server.port,
            "http_port": server.http_port,
            "pid": server.process.pid,
        }
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
    assert list(tmp_path.glob("ready*")) == []


def test_every_line_of_a_json_log_is_an_object(tiny: Path) -> None:
    with running_server(tiny, flags=("--log-format", "json")) as server:
        with client(server) as caller:
            caller.generate(2)
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
        lines = [json.loads(line) for line in server.log.splitlines()]
    requests = [line for line in lines if line["logger"] == "serving.access"]
    assert [(line["code"], line["label"]) for line in requests] == [("OK", 2)]
    assert lines[0]["message"].startswith("configuration: --model ")


# Draining


def start(server: ServerProcess, threads: ThreadPoolExecutor, requests: int) -> list[Future]:
    def ask(seed: int) -> Generation:
        with client(server) as caller:
            return caller.generate(0, 64, seed=seed, num_steps=LONG_STEPS)

    asked = [threads.submit(ask, seed) for seed in range(requests)]
    until(
        lambda: (
            f'requests_started_total{{method="Generate"}} {float(requests)}'
            in server.get("/metrics")[1]
        )
    )
    return asked


def test_sigterm_finishes_what_was_accepted_and_refuses_what_is_new(slow: Path) -> None:
    with running_server(slow) as server, ThreadPoolExecutor(8) as threads:
        asked = start(server, threads, 3)
        server.signal(signal.SIGTERM)
        until(lambda: server.get("/readyz") == (503, "draining\n"))
        assert server.get("/livez")[0] == 200
        with client(server) as caller:
            assert caller.health() == "NOT_SERVING"
            with pytest.raises(ClientError, match="this server is draining"):
                caller.generate(0)
        assert not any(each.done() for each in asked), "too quick for this test"
        assert [len(each.result().images) for each in asked] == [64] * 3
        assert server.exit_code() == 0
        assert "Traceback" not in server.log


def test_a_grace_period_still_accepts(tiny: Path) -> None:
    with running_server(tiny, flags=("--drain-grace-seconds", "3")) as server:
        server.signal(signal.SIGTERM)
        until(lambda: server.get("/readyz") == (503, "lame duck\n"))
        with client(server) as caller:
            assert len(caller.generate(0).images) == 1
        assert server.exit_code() == 0


def test_what_cannot_be_finished_in_time_is_told_so(slow: Path) -> None:
    with (
        running_server(slow, flags=("--drain-timeout-seconds", "0.2")) as server,
        ThreadPoolExecutor(8) as threads,
    ):
        asked = start(server, threads, 3)
        server.signal(signal.SIGTERM)
        for each in asked:
            with pytest.raises(ClientError, match="stopped before") as caught:
                each.result()
            assert caught.value.code == "UNAVAILABLE"
        assert server.exit_code() == 1
        assert "Traceback" not in server.log


def test_a_stream_that_nobody_reads_holds_up_the_exit_no_longer_than_the_timeout(
    tmp_path: Path,
) -> None:
    large = write_tiny_bundle(tmp_path / "large", name="large", image_shape=(3, 64, 64))
    with (
        running_server(large, flags=("--drain-timeout-seconds", "1")) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        asked = pb.GenerateRequest(
            label=0, count=1024, num_steps=1, format=pb.IMAGE_FORMAT_RAW_UINT8
        )
        stream = DiffusionServiceStub(channel).GenerateStream(asked)
        next(iter(stream))
        until(lambda: 'images_waiting{model="large"} 0.0' in server.get("/metrics")[1])
        begin = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 1
        assert time.monotonic() - begin < 10
        assert "method=GenerateStream code=UNAVAILABLE" in server.log
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def caught_signals(process: subprocess.Popen[str]) -> int:
    """The signals that a process handles itself, as the bits of a mask (Linux)."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return int(line.split()[1], 16)
    raise AssertionError("there is no such line")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["importing", "loading"])
def test_a_signal_before_a_server_is_ready_ends_it_without_a_traceback(
    repository: Path, number: signal.Signals, moment: str
) -> None:
    model = str(repository / "models" / "mnist")
    command = [sys.executable, "-m", "serving", "--model", model, "--port", "0", "--http-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        said = ""
        if moment == "importing":
            until(lambda: bool(caught_signals(process) & 1 << (signal.SIGTERM - 1)))
        else:
            while "loading" not in said:
                said += process.stderr.readline()
        begin = time.monotonic()
        process.send_signal(number)
        said += process.communicate(timeout=20)[1]
        assert time.monotonic() - begin < 2
    assert process.returncode == 0
    assert "Traceback" not in said
    assert "ready" not in said


def test_a_second_signal_exits_at_once(slow: Path) -> None:
    with running_server(slow) as server, ThreadPoolExecutor(8) as threads:
        asked = start(server, threads, 3)
        server.signal(signal.SIGTERM)
        until(lambda: server.get("/readyz")[0] == 503)
        begin = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 128 + signal.SIGTERM
        assert time.monotonic() - begin < 2
        assert all(each.exception() for each in asked)


def test_sigint_does_not_wait_for_load_balancers(tiny: Path) -> None:
    with running_server(tiny, flags=("--drain-grace-seconds", "100")) as server:
        server.signal(signal.SIGINT)
        assert server.exit_code(20) == 0
        assert "Traceback" not in server.log


def test_open_watches_and_idle_connections_do_not_hold_up_the_exit(tiny: Path) -> None:
    with running_server(tiny) as server, grpc.insecure_channel(server.target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        with socket.create_connection(("127.0.0.1", server.http_port)):
            begin = time.monotonic()
            server.signal(signal.SIGTERM)
            assert server.exit_code() == 0
            assert time.monotonic() - begin < 5


# Refusing to start


def one_line(stderr: str) -> str:
    """The error line of a server that did not start; nothing else but log lines stands there."""
    errors = [line for line in stderr.splitlines() if " INFO " not in line]
    assert len(errors) == 1, stderr
    return errors[0]


def test_two_servers_never_share_a_port(tiny: Path) -> None:
    with running_server(tiny) as first:
        ended = run_server("--model", str(tiny), "--port", str(first.port), "--http-port", "0")
    assert ended.returncode == 1
    line = one_line(ended.stderr)
    assert line.startswith(
        f"error: cannot listen on 127.0.0.1:{first.port}: address already in use"
    )
    assert "--port" in line


def test_the_reason_is_an_object_in_a_json_log(tmp_path: Path) -> None:
    ended = run_server(
        "--model", str(tmp_path / "nothing"), "--port", "0", "--http-port", "0",
        "--log-format", "json",
    )  # fmt: skip
    assert ended.returncode == 1
    last = [json.loads(line) for line in ended.stderr.splitlines()][-1]
    assert last["level"] == "CRITICAL"
    assert "no such directory" in last["message"]


async def refused(capfd: pytest.CaptureFixture[str], *models: Path, **settings: Any) -> str:
    """The one line of a server that does not start."""
    config = ServerConfig(
        models=models, **{"port": 0, "http_port": 0, "provider": "cpu", **settings}
    )
    assert await serve(config) == 1
    return one_line(capfd.readouterr().err)


@pytest.mark.parametrize(("setting", "flag"), [("port", "--port"), ("http_port", "--http-port")])
async def test_a_port_in_use_is_named_with_what_to_do(
    tiny: Path, capfd: pytest.CaptureFixture[str], setting: str, flag: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = await refused(capfd, tiny, **{setting: port})
    assert line.startswith(f"error: cannot listen on 127.0.0.1:{port}: address already in use")
    assert f"another port with {flag}" in line


async def test_a_host_that_is_not_ours_is_named(
    tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for host in ("203.0.113.1", "no such host"):
        line = await refused(capfd, tiny, host=host)
        assert line.startswith(f"error: cannot listen on host {host!r}: ")
        assert line.endswith("use --host")


async def test_a_ready_file_that_cannot_be_written_is_named_before_anything_is_loaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nowhere" / "ready"
    line = await refused(capfd, tmp_path / "no bundle", ready_file=path)
    assert line == f"error: --ready-file {path}: no such file or directory"


async def test_a_bundle_that_is_missing_broken_or_doubled_is_named(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "no such directory" in await refused(capfd, tmp_path / "nothing")
    broken = write_tiny_bundle(tmp_path / "broken")
    unet = broken / "unet.onnx"
    unet.write_bytes(unet.read_bytes()[:-1] + b"!")
    assert "sha256" in await refused(capfd, broken)
    assert "'tiny' is loaded already" in await refused(capfd, tiny, tiny)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there may be a GPU"
)
async def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(
    tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "built without CUDA" in await refused(capfd, tiny, provider="cuda")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-images-per-request", "10", "--max-queued-images", "9"),
        ("--provider", "tpu"),
        ("--port", "70000"),
        ("--max-lanes", "0"),
        ("--no-such-flag",),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 2
    assert arguments[0] in ended.output


# Hot reload


def test_sighup_serves_a_new_bundle_while_requests_in_flight_finish_on_the_old_one(
    tmp_path: Path,
) -> None:
    shape, width = (1, 28, 28), 8

    def bundle(version: str, weights_seed: int) -> Path:
        return write_tiny_bundle(
            tmp_path / "bundle",
            version=version,
            image_shape=shape,
            num_train_timesteps=LONG_STEPS,
            unet=unet_graph(shape, width, weights_seed=weights_seed),
        )

    def draw(caller: Client, count: int = 2) -> Generation:
        return caller.generate(1, count, seed=3, num_steps=LONG_STEPS)

    with (
        running_server(bundle("1.0.0", 1)) as server,
        client(server) as caller,
        ThreadPoolExecutor() as threads,
    ):
        old = draw(caller)
        in_flight = threads.submit(draw, caller, 64)
        until(lambda: 'lanes_in_use{model="tiny"} 0.0' not in server.get("/metrics")[1])
        bundle("2.0.0", 9)
        server.signal(signal.SIGHUP)
        until(lambda: "reloaded: tiny 2.0.0 in place of 1.0.0" in server.log)
        new = draw(caller)
        assert new.model_version == "2.0.0"
        assert pixels(new) != pixels(old)
        assert in_flight.result().model_version == "1.0.0"
        assert pixels(in_flight.result())[:2] == pixels(old)
        (tmp_path / "bundle" / "unet.onnx").write_bytes(b"damaged")
        server.signal(signal.SIGHUP)
        until(lambda: "not reloaded, tiny 2.0.0 goes on: " in server.log)
        assert pixels(draw(caller)) == pixels(new)
        assert 'model_reloads_total{model="tiny",outcome="failed"} 1.0' in server.get("/metrics")[1]
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0


def test_a_server_that_watches_its_bundles_loads_a_changed_one_by_itself(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    variables = {"SIMPLE_DIFFUSION_WATCH_MODELS": "true"}
    with running_server(bundle, variables=variables) as server, client(server) as caller:
        assert caller.generate(1).model_version == "1.0.0"
        write_tiny_bundle(bundle, version="2.0.0")
        until(lambda: caller.generate(1).model_version == "2.0.0")
        (bundle / "unet.onnx").write_bytes(b"damaged")
        until(lambda: "not reloaded, tiny 2.0.0 goes on: " in server.log)
        write_tiny_bundle(bundle, version="3.0.0")
        until(lambda: caller.generate(1).model_version == "3.0.0")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bundles_that_were_replaced_leave_no_thread_and_no_file_behind(slow: Path) -> None:
    with (
        running_server(slow, flags=("--num-threads", "3", "--max-lanes", "4")) as server,
        client(server) as caller,
    ):

        def reload(times: int) -> None:
            server.signal(signal.SIGHUP)
            until(lambda: server.log.count("reloaded: ") == times)
            caller.generate(1, 64, num_steps=2)

        reload(1)  # what is made once is made
        before = vitals(server.process.pid)
        for times in range(2, 8):
            reload(times)
        # Each has threads of its own.
        until(lambda: vitals(server.process.pid).threads <= before.threads)
        assert vitals(server.process.pid).files <= before.files


# Loading and dying, inside this process


class InProcess:
    """A server in this event loop whose loading waits for the test."""

    def __init__(self, model: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.may_load = threading.Event()
        self.loaded: list[LoadedModel] = []

        def load(*arguments: object, **settings: object) -> list[LoadedModel]:
            self.may_load.wait(30)
            self.loaded = load_models(*arguments, **settings)
            return self.loaded

        monkeypatch.setattr(server_module, "load_models", load)
        config = ServerConfig(models=(model,), port=0, http_port=0, provider="cpu", **settings)
        self.server = Server(config)
        self.task = asyncio.create_task(self.server.run())

    def hang(self) -> tuple[threading.Event, threading.Event]:
        """Makes the next engine step hang: an event that ends it, one that is set by it."""
        go_on, hanging = threading.Event(), threading.Event()
        for denoiser in self.loaded[0].engine._batching.denoisers:

            def hung(*network: Any, compute: Any = denoiser.compute) -> Any:
                hanging.set()
                assert go_on.wait(30)
                return compute(*network)

            denoiser.compute = hung  # type: ignore[method-assign, assignment]
        return go_on, hanging

    async def channel(self) -> grpc.aio.Channel:
        while self.server.ports.grpc_port == 0:
            await asyncio.sleep(0.01)
        return grpc.aio.insecure_channel(
            f"127.0.0.1:{self.server.ports.grpc_port}", options=[("grpc.enable_retries", 0)]
        )


async def readiness(channel: grpc.aio.Channel) -> int:
    ask = health_pb2.HealthCheckRequest(service="simple_diffusion.v1.DiffusionService")
    return (await health_pb2_grpc.HealthStub(channel).Check(ask)).status


async def test_a_server_is_not_ready_before_its_models_are(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = InProcess(tiny, monkeypatch)
    async with await running.channel() as channel:
        stub = DiffusionServiceStub(channel)
        assert await readiness(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(pb.GenerateRequest(label=0))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "starting" in str(caught.value.details())
        running.may_load.set()
        async with asyncio.timeout(20):
            while await readiness(channel) != health_pb2.HealthCheckResponse.SERVING:
                await asyncio.sleep(0.01)
        assert len((await stub.Generate(pb.GenerateRequest(label=0))).images) == 1
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.wait_for(running.task, 20) == 0


@pytest.mark.parametrize("watch_models", [False, True])
async def test_a_bundle_that_changes_while_it_is_loaded_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch_models: bool
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    running = InProcess(bundle, monkeypatch, watch_models=watch_models)

    def load_while_it_changes(*arguments: object, **settings: object) -> list[LoadedModel]:
        loaded = load_models(*arguments, **settings)
        write_tiny_bundle(bundle, version="2.0.0")
        if not watch_models:
            os.kill(os.getpid(), signal.SIGHUP)
        return loaded

    monkeypatch.setattr(server_module, "load_models", load_while_it_changes)
    running.may_load.set()
    async with await running.channel() as channel:
        stub = DiffusionServiceStub(channel)
        async with asyncio.timeout(30):
            while await readiness(channel) != health_pb2.HealthCheckResponse.SERVING:
                await asyncio.sleep(0.01)
            asked = pb.GenerateRequest(label=0)
            while (await stub.Generate(asked)).model_version != "2.0.0":
                await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.wait_for(running.task, 20) == 0


async def test_a_signal_while_loading_ends_the_server(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = InProcess(tiny, monkeypatch)
    async with await running.channel():
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(running.task, 2) == 0
    running.may_load.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_engine_thread_is_not_ready_within_a_second_and_ends_the_server(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: Engine) -> None:
        raise RuntimeError("the engine has a bug")

    running = InProcess(tiny, monkeypatch)
    running.may_load.set()
    async with await running.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(
            health_pb2.HealthCheckRequest(service="simple_diffusion.v1.DiffusionService")
        )
        while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass
        monkeypatch.setattr(Engine, "begin", die)
        for restarts in range(4):  # the fourth time it is not started anew
            assert await readiness(channel) == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await DiffusionServiceStub(channel).Generate(pb.GenerateRequest(label=0))
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert "bug" not in str(caught.value.details())
            counted = running.server._metrics.value("diffusion_engine_restarts_total", model="tiny")
            assert counted == min(restarts + 1, 3)
        begin = time.monotonic()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - begin < 1
        assert await asyncio.wait_for(running.task, 20) == 1


async def test_a_hung_engine_is_not_ready_within_a_second_and_ready_again_when_it_goes_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = InProcess(tiny, monkeypatch)
    running.may_load.set()
    async with await running.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="simple_diffusion.v1.DiffusionService")
        )
        while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
            pass
        go_on, hanging = running.hang()
        asked = DiffusionServiceStub(channel).Generate(pb.GenerateRequest(label=0))
        assert await asyncio.to_thread(hanging.wait, 20)
        begin = time.monotonic()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - begin < 1
        with pytest.raises(grpc.aio.AioRpcError, match="this server is stalled") as caught:
            await DiffusionServiceStub(channel).Generate(pb.GenerateRequest(label=0))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        go_on.set()
        assert len((await asked).images) == 1
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        running.server._on_signal(signal.SIGTERM)
        assert await asyncio.wait_for(running.task, 20) == 0


async def test_an_engine_that_hangs_for_good_ends_the_server_and_its_requests(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_HANG_EXIT_SECONDS", 0.5)
    monkeypatch.setattr(server_module, "_ENGINE_STOP_SECONDS", 0.1)
    running = InProcess(tiny, monkeypatch)
    running.may_load.set()
    async with await running.channel() as channel:
        while await readiness(channel) != health_pb2.HealthCheckResponse.SERVING:
            await asyncio.sleep(0.01)
        go_on, _ = running.hang()
        with pytest.raises(grpc.aio.AioRpcError, match="stopped before the request") as caught:
            await DiffusionServiceStub(channel).Generate(pb.GenerateRequest(label=0))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await asyncio.wait_for(running.task, 20) == 1
        go_on.set()


def test_garbage_is_not_looked_for_among_what_stays(tiny: Path) -> None:
    """A full collection takes tens of milliseconds, in which nobody else runs."""
    program = (
        "import asyncio, gc, pathlib, sys\n"
        "from serving.configuration import ServerConfig\n"
        "from serving.server import Server\n"
        "class Served(Server):\n"
        "    async def _serve(self):\n"
        "        print(gc.get_freeze_count(), len(gc.get_objects()))\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "config = ServerConfig(models=(path,), port=0, http_port=0, provider='cpu')\n"
        "asyncio.run(Served(config).run())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny)],
        env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    frozen, others = map(int, done.stdout.split())
    assert frozen > 20_000
    assert others < frozen / 10
