"""Promise: whatever is done to a connection, others are served, and nothing is left of it."""

import contextlib
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import h2.errors
import hpack
import pytest
from hyperframe.frame import ContinuationFrame, HeadersFrame

from serving.listening import raise_file_limit
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.fakes import write_tiny_bundle
from tests.fault_figures import Record
from tests.raw_http2 import GENERATE, GENERATE_STREAM, RawConnection, framed
from tests.server_process import ServerProcess, running_server
from tests.server_vitals import Vitals, vitals

ASKED = pb.GenerateRequest(label=0, count=1).SerializeToString()
ASKED_LARGE = pb.GenerateRequest(
    label=0, count=16, format=pb.IMAGE_FORMAT_RAW_UINT8
).SerializeToString()

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) [\w.]+: ")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    raise_file_limit()  # this process holds the other ends
    bundle = tmp_path_factory.mktemp("bundles") / "tiny"
    with running_server(write_tiny_bundle(bundle, image_shape=(1, 28, 28))) as running:
        answered(running)  # whatever is made at the first request is made
        yield running


def answered(server: ServerProcess) -> float:
    """Asks on a connection of its own; returns how many seconds the images took."""
    begin = time.monotonic()
    with RawConnection(server.port) as connection:
        number = connection.ask(ASKED)
        connection.flush()
        assert connection.answer(number, 60).headers["grpc-status"] == "0"
    return time.monotonic() - begin


@contextlib.contextmanager
def connections(
    server: ServerProcess, amount: int, **settings: int
) -> Iterator[list[RawConnection]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RawConnection(server.port, **settings)) for _ in range(amount)]


@contextlib.contextmanager
def zero_window(server: ServerProcess, amount: int) -> Iterator[None]:
    """Asks for much and lets the server send nothing."""
    with connections(server, amount, initial_window_bytes=0) as opened:
        for each in opened:
            for path in (GENERATE, GENERATE_STREAM):
                for _ in range(5):
                    each.ask(ASKED_LARGE, path)
            each.flush()
        yield


@contextlib.contextmanager
def half_sent(server: ServerProcess, amount: int) -> Iterator[None]:
    """Sends requests without their last byte."""
    with connections(server, 10) as opened:
        for number in range(amount):
            each = opened[number % len(opened)]
            each.h2.send_data(each.begin(), framed(ASKED)[:-1])
        for each in opened:
            each.flush()
        yield


@contextlib.contextmanager
def rapid_resets(server: ServerProcess, amount: int) -> Iterator[None]:
    """Asks and takes it back at once."""
    with connections(server, 1) as [attacker]:
        for number in range(amount):
            attacker.h2.reset_stream(attacker.ask(ASKED), h2.errors.ErrorCodes.CANCEL)
            if number % 100 == 99:
                attacker.flush()
                attacker.receive(0.0005)
        attacker.flush()
        yield


@contextlib.contextmanager
def many_connections(server: ServerProcess, amount: int) -> Iterator[None]:
    """Opens many connections, has a request answered on each, and keeps them."""
    with connections(server, amount) as opened:
        for each in opened:
            each.ask(ASKED)
            each.flush()
        for each in opened:
            assert each.answer(1, 60).headers["grpc-status"] == "0"
        yield


@contextlib.contextmanager
def ping_flood(server: ServerProcess, amount: int) -> Iterator[None]:
    """Pings until it is told to go."""
    with connections(server, amount) as opened:
        for each in opened:
            for _ in range(1000):
                each.h2.ping(b"attacker")
            each.flush()
            each.receive(10)
            assert each.goaway == "too_many_pings"
        yield


@contextlib.contextmanager
def random_bytes(server: ServerProcess, amount: int) -> Iterator[None]:
    """Says nothing that makes sense, or not for long."""
    rng = random.Random(amount)
    with contextlib.ExitStack() as stack:
        for number in range(amount):
            attacker = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            with contextlib.suppress(OSError):
                attacker.sendall(PREFACE * (number % 2) + rng.randbytes(rng.randrange(1, 2000)))
        yield


@contextlib.contextmanager
def endless_headers(server: ServerProcess, amount: int) -> Iterator[None]:
    """Sends headers that go on and on, `amount` frames of 15 kB."""
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", GENERATE), (":authority", "x")]
    # Literals that are not indexed: length and text of the name, length and text of the value.
    more = b"".join(b"\x00\x08x-%06d\x64" % number + b"y" * 100 for number in range(130))
    with connections(server, 1) as [attacker]:
        first = HeadersFrame(1)
        first.data = hpack.Encoder().encode(pseudo)
        go_on = ContinuationFrame(1)
        go_on.data = more
        with contextlib.suppress(OSError):
            attacker.socket.sendall(first.serialize())
            for _ in range(amount):
                attacker.socket.sendall(go_on.serialize())
        yield


Abuse = Callable[[ServerProcess, int], AbstractContextManager[None]]

# How often: in `make test`, and in `make fault-test`.
AMOUNTS: dict[Abuse, tuple[int, int]] = {
    zero_window: (2, 20),
    half_sent: (50, 1000),
    rapid_resets: (500, 10_000),
    many_connections: (50, 1000),
    ping_flood: (1, 20),
    random_bytes: (40, 1000),
    endless_headers: (200, 20_000),
}


def cases() -> Iterator[object]:
    for abuse, (short, full) in AMOUNTS.items():
        name = getattr(abuse, "__name__", "").replace("_", " ")
        yield pytest.param(abuse, short, id=f"{short} {name}")
        marks = [pytest.mark.fault, pytest.mark.timeout(300)]
        yield pytest.param(abuse, full, marks=marks, id=f"{full} {name}")


def settled(server: ServerProcess, before: Vitals) -> Vitals:
    """Waits until the server has let go of what it held for connections that are closed."""
    server.until_idle(60)
    end_seconds = time.monotonic() + 20
    while (now := vitals(server.process.pid)).files > before.files + 3:
        assert time.monotonic() < end_seconds, f"files stay open: {before} {now}"
        time.sleep(0.05)
    return now


@pytest.mark.parametrize(("abuse", "amount"), list(cases()))
def test_others_are_served_meanwhile_and_nothing_is_left_afterwards(
    server: ServerProcess, figure: Record, abuse: Abuse, amount: int
) -> None:
    before, logged = vitals(server.process.pid), len(server.log)
    with abuse(server, amount):
        meanwhile_seconds = answered(server)
        during = vitals(server.process.pid)
        assert server.get("/readyz") == (200, "serving\n")
    after = settled(server, before)
    afterwards_seconds = answered(server)
    lines = server.log[logged:].splitlines()

    assert meanwhile_seconds < 30
    assert afterwards_seconds < 5
    assert during.threads <= before.threads + 8
    assert after.threads <= before.threads + 8
    grown_mb = (max(during.rss_bytes, after.rss_bytes) - before.rss_bytes) / 1e6
    assert grown_mb < 256
    # Nobody can write to the log what is not a line of ours, nor have it filled with tracebacks.
    assert [line for line in lines if not LOG_LINE.match(line)] == []
    assert [line for line in lines if " ERROR " in line] == []
    figure(
        "seconds of another's request meanwhile, afterwards",
        f"{meanwhile_seconds:.3f}, {afterwards_seconds:.3f}",
        "< 30, < 5",
    )
    figure("memory grown by, MB", grown_mb, "< 256")
    figure(
        "threads, files before and afterwards",
        f"{before.threads}, {before.files}; {after.threads}, {after.files}",
        "within 8, within 3",
    )


def test_an_unread_stream_with_a_deadline_is_ended_by_it(server: ServerProcess) -> None:
    with RawConnection(server.port, initial_window_bytes=0) as connection:
        connection.ask(ASKED_LARGE, GENERATE_STREAM, grpc_timeout="300m")
        connection.flush()
        ended = server.finished("GenerateStream", "DEADLINE_EXCEEDED")
        server.until(lambda _: server.finished("GenerateStream", "DEADLINE_EXCEEDED") > ended)
    server.until_idle()
