"""What a connection may do: how large, how many at once, how long, how often it may ping."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from serving import listening
from serving.client.connection import CHANNEL_OPTIONS
from serving.listening import (
    MAX_BODY_BYTES,
    MAX_CALLS_PER_CONNECTION,
    MAX_METADATA_BYTES,
    ConnectionLimits,
)
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.edge_harness import running_edge, violations
from tests.server_process import environment


@contextlib.asynccontextmanager
async def serving(limits: ConnectionLimits) -> AsyncIterator[int]:
    """A server with one slow method, `/test/Sleep`; yields its port."""

    async def sleep(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        await asyncio.sleep(float(request))
        return request

    server = listening.make_grpc_server(limits)
    methods = {"Sleep": grpc.unary_unary_rpc_method_handler(sleep)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    port = listening.open_grpc_port(server, "127.0.0.1", 0)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def seconds_until_closed(port: int, first_bytes: bytes) -> float:
    """How long the server bears a connection on which nothing more comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin = time.monotonic()
    writer.write(first_bytes)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            while await reader.read(4096):
                pass
    writer.close()
    return time.monotonic() - begin


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")


@pytest.mark.parametrize("first_bytes", [b"", b"PRI * HT", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_connection_that_never_speaks_http2_is_closed(first_bytes: bytes) -> None:
    async with serving(ConnectionLimits(handshake_seconds=1)) as port:
        assert await seconds_until_closed(port, first_bytes) < 5


async def test_an_idle_connection_is_closed() -> None:
    async with serving(ConnectionLimits(max_idle_seconds=1)) as port:
        assert 0.5 < await seconds_until_closed(port, PREFACE) < 8


async def test_a_client_that_answers_no_ping_is_gone() -> None:
    async with serving(ConnectionLimits(silence_seconds=1, ping_seconds=1)) as port:
        assert 1.5 < await seconds_until_closed(port, PREFACE) < 10


async def test_an_old_connection_is_closed_after_what_runs_on_it_and_the_client_goes_on() -> None:
    limits = ConnectionLimits(max_age_seconds=0.5, max_age_grace_seconds=20)
    async with (
        serving(limits) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        sleep = channel.unary_unary("/test/Sleep")
        assert await sleep(b"2") == b"2"  # longer than the connection gets old
        assert await sleep(b"0") == b"0"  # on the next one


async def test_what_takes_longer_than_the_grace_of_an_old_connection_is_cut_off() -> None:
    limits = ConnectionLimits(max_age_seconds=0.2, max_age_grace_seconds=0.5)
    async with (
        serving(limits) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        begin = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test/Sleep")(b"30", timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - begin < 5


def test_the_projects_client_pings_less_often_than_the_server_allows() -> None:
    interval_seconds = int(dict(CHANNEL_OPTIONS)["grpc.keepalive_time_ms"]) / 1000
    assert interval_seconds > listening.MIN_CLIENT_PING_SECONDS


async def test_bodies_up_to_the_limit_of_grpc_are_answered_with_their_size() -> None:
    async with running_edge() as edge:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await edge.raw("Generate", bytes(MAX_BODY_BYTES))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"{MAX_BODY_BYTES} bytes" in violations(caught.value)["request"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await edge.raw("Generate", bytes(MAX_BODY_BYTES + 1))
        # gRPC's own answer: it reads no further than the size.
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len((await edge.stub.Generate(pb.GenerateRequest(label=1))).images) == 1


async def test_metadata_over_the_limit_are_refused_and_those_below_are_not() -> None:
    asked = pb.GenerateRequest(label=1)
    async with running_edge() as edge:
        small = [("x-note", "y" * (MAX_METADATA_BYTES - 2000))]
        assert len((await edge.stub.Generate(asked, metadata=small)).images) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await edge.stub.Generate(asked, metadata=[("x-note", "y" * MAX_METADATA_BYTES)])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len((await edge.stub.Generate(asked)).images) == 1


async def test_more_calls_than_a_connection_may_carry_wait_and_are_all_answered() -> None:
    async with (
        serving(ConnectionLimits()) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        sleep = channel.unary_unary("/test/Sleep")
        await sleep(b"0")
        calls = (sleep(b"0.1") for _ in range(2 * MAX_CALLS_PER_CONNECTION))
        assert len(await asyncio.gather(*calls)) == 2 * MAX_CALLS_PER_CONNECTION


async def test_calls_that_all_come_at_once_are_all_answered() -> None:
    # gRPC's default ends some of them as CANCELLED, which nobody asked for.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with serving(ConnectionLimits()) as port, contextlib.AsyncExitStack() as stack:
        sleeps = []
        for _ in range(4):
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
            sleeps.append((await stack.enter_async_context(channel)).unary_unary("/test/Sleep"))
        await asyncio.gather(*(sleep(b"0") for sleep in sleeps))
        calls = (sleep(b"0.1") for sleep in sleeps for _ in range(900))
        assert len(await asyncio.gather(*calls)) == 3600


def test_two_servers_never_share_a_port() -> None:
    async def try_both() -> None:
        first, second = listening.make_grpc_server(), listening.make_grpc_server()
        port = listening.open_grpc_port(first, "127.0.0.1", 0)
        await first.start()
        with pytest.raises(RuntimeError):
            second.add_insecure_port(f"127.0.0.1:{port}")
        with pytest.raises(listening.PortError):
            listening.open_grpc_port(second, "127.0.0.1", port)
        await first.stop(0)

    asyncio.run(try_both())


RAISE_THE_LIMIT = """
import resource
from serving import listening
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
listening.raise_file_limit()
soft, still = resource.getrlimit(resource.RLIMIT_NOFILE)
print(still == hard, soft > 200, soft == min(hard, 65536))
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
listening.raise_file_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")
def test_as_many_connections_as_the_system_allows_can_be_opened() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAISE_THE_LIMIT],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["True True True", "(200, 200)"]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        (socket.gethostname(), False),
    ],
)
def test_a_loopback_address_is_recognised(host: str, loopback: bool) -> None:
    assert listening.is_loopback(host) is loopback
