"""Promise: health is the truth: not ready before a warm-up step, nor once the engine is dead."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client import Client, ClientError, InternalError, UnavailableError
from serving.client.connection import READINESS
from tests import faulty_server
from tests.fault_figures import Record
from tests.server_process import MNIST, ServerProcess, running_server, sample, started_server

PROGRAM = (str(Path(faulty_server.__file__)),)
FLAGS = ("--provider", "cpu", "--max-lanes", "8")
STATUS = health_pb2.HealthCheckResponse


class Watch:
    """What a Watch on readiness says, and when."""

    def __init__(self, stub: health_pb2_grpc.HealthStub) -> None:
        self._call = stub.Watch(health_pb2.HealthCheckRequest(service=READINESS))
        self.said: list[tuple[float, int]] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for response in self._call:
                with self._changed:
                    self.said.append((time.monotonic(), response.status))
                    self._changed.notify_all()

    def seconds_until(self, status: int, since_seconds: float) -> float:
        """Waits for a status; returns how long after that moment it came."""

        def found() -> list[float]:
            return [when for when, said in self.said if said == status and when >= since_seconds]

        with self._changed:
            assert self._changed.wait_for(found, 30), self.said
            return found()[0] - since_seconds

    def close(self) -> None:
        self._call.cancel()


@contextlib.contextmanager
def watching(server: ServerProcess) -> Iterator[Watch]:
    with grpc.insecure_channel(server.target) as channel:
        watch = Watch(health_pb2_grpc.HealthStub(channel))
        yield watch
        watch.close()


def test_a_server_that_loads_is_alive_and_not_ready(tmp_path: Path, figure: Record) -> None:
    gate = tmp_path / "gate"
    with (
        started_server(
            MNIST, flags=FLAGS, program=PROGRAM, variables={faulty_server.GATE: str(gate)}
        ) as server,
        Client(server.target, wait_for_ready=True, timeout_seconds=30) as client,
    ):
        until_answering(lambda: client.health("") == "SERVING")
        assert client.health() == "NOT_SERVING"
        assert [server.get(path)[0] for path in ("/livez", "/readyz")] == [200, 503]
        with Client(server.target, retry=None) as other:
            for ask in (lambda: other.generate(0), other.models):
                with pytest.raises(UnavailableError, match="this server is starting"):
                    ask()
        with watching(server) as watch:
            begin = time.monotonic()
            gate.touch()
            seconds = watch.seconds_until(STATUS.SERVING, begin)
        assert "self-test at" in server.log.partition("ready: ")[0], "ready before a warm-up"
        assert len(client.generate(0).images) == 1
        figure("seconds from the start of loading to SERVING", seconds, "-")


def until_answering(condition: Callable[[], bool]) -> None:
    end_seconds = time.monotonic() + 30
    while True:
        with contextlib.suppress(ClientError):
            if condition():
                return
        assert time.monotonic() < end_seconds
        time.sleep(0.05)


def test_an_engine_that_dies_for_good_is_not_ready_within_a_second_and_ends_the_process(
    figure: Record, patience: float
) -> None:
    with (
        running_server(MNIST, flags=FLAGS, program=PROGRAM) as server,
        Client(server.target, retry=None, timeout_seconds=60) as client,
        watching(server) as watch,
    ):
        watch.seconds_until(STATUS.SERVING, 0.0)
        server.signal(signal.SIGUSR1)
        for restart in range(4):
            assert server.process.poll() is None
            begin = time.monotonic()
            with pytest.raises((InternalError, UnavailableError)) as caught:
                client.generate(restart)
            assert "bug" not in str(caught.value)
        seconds = watch.seconds_until(STATUS.NOT_SERVING, begin)
        assert server.exit_code(60) == 1
    figure("seconds from the fourth death of an engine to NOT_SERVING", seconds, "< 1")
    assert seconds < 1 * patience


@pytest.mark.timeout(200)
def test_an_engine_that_hangs_is_not_ready_within_a_second_and_ends_the_process(
    figure: Record, patience: float
) -> None:
    with (
        running_server(MNIST, flags=FLAGS, program=PROGRAM) as server,
        Client(server.target, retry=None, timeout_seconds=600) as client,
        watching(server) as watch,
    ):
        watch.seconds_until(STATUS.SERVING, 0.0)
        events = client.stream(0, 4, num_steps=300, preview_every=1)
        next(events)
        begin = time.monotonic()
        server.signal(signal.SIGUSR2)
        seconds = watch.seconds_until(STATUS.NOT_SERVING, begin)
        with pytest.raises(UnavailableError):
            client.generate(1)
        if patience == 1.0:  # the rest takes half a minute
            with pytest.raises(UnavailableError):
                list(events)
            assert server.exit_code(60) == 1
            figure("seconds from a hang to exit code 1", time.monotonic() - begin, "< 60")
    figure("seconds from an engine that hangs to NOT_SERVING", seconds, "< 1")
    assert seconds < 1 * patience


def test_a_draining_server_is_alive_and_not_ready(figure: Record) -> None:
    with (
        running_server(MNIST, flags=FLAGS) as server,
        Client(server.target, retry=None) as client,
        watching(server) as watch,
    ):
        watch.seconds_until(STATUS.SERVING, 0.0)
        events = client.stream(0, 4, num_steps=100)
        running = threading.Thread(target=lambda: list(events))
        running.start()
        server.until(lambda samples: samples[sample("diffusion_lanes_in_use", model="mnist")])
        begin = time.monotonic()
        server.signal(signal.SIGTERM)
        seconds = watch.seconds_until(STATUS.NOT_SERVING, begin)
        assert client.health("") == "SERVING"
        assert client.health() == "NOT_SERVING"
        assert [server.get(path)[0] for path in ("/livez", "/readyz")] == [200, 503]
        running.join()
        assert events.summary is not None
        assert server.exit_code() == 0
    figure("seconds from SIGTERM to NOT_SERVING", seconds, "-")
