"""Health says what is so, to everybody, whoever else listens and however badly."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import listening
from serving.health import Health, Phase, Readiness

SERVICE = "some.v1.Service"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@contextlib.asynccontextmanager
async def running_health(
    readiness: Readiness,
) -> AsyncIterator[tuple[health_pb2_grpc.HealthStub, grpc.aio.Channel, grpc.aio.Server]]:
    server = listening.make_grpc_server()
    server.add_generic_rpc_handlers((Health(readiness, [SERVICE]).handler(),))
    port = listening.open_grpc_port(server, "127.0.0.1", 0)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel), channel, server
        readiness.close()
        await server.stop(1)


def ask(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize(
    ("phase", "process", "ready", "accepting"),
    [
        (Phase.STARTING, SERVING, NOT_SERVING, False),
        (Phase.SERVING, SERVING, SERVING, True),
        (Phase.LAME_DUCK, SERVING, NOT_SERVING, True),
        (Phase.DRAINING, SERVING, NOT_SERVING, False),
        (Phase.FAILED, NOT_SERVING, NOT_SERVING, False),
    ],
)
async def test_each_phase_has_its_status(
    phase: Phase, process: int, ready: int, accepting: bool
) -> None:
    readiness = Readiness()
    readiness.set(phase)
    async with running_health(readiness) as (stub, _, _):
        assert (await stub.Check(ask(""))).status == process
        assert (await stub.Check(ask(SERVICE))).status == ready
    assert readiness.accepting is accepting


async def test_a_list_has_the_status_of_every_name() -> None:
    readiness = Readiness()
    async with running_health(readiness) as (stub, _, _):
        for phase in (Phase.STARTING, Phase.SERVING, Phase.FAILED):
            readiness.set(phase)
            listed = (await stub.List(health_pb2.HealthListRequest())).statuses
            assert set(listed) == {"", SERVICE}
            for name, found in listed.items():
                assert found.status == (await stub.Check(ask(name))).status


async def test_a_new_server_is_not_ready() -> None:
    async with running_health(Readiness()) as (stub, _, _):
        assert (await stub.Check(ask(SERVICE))).status == NOT_SERVING


async def test_an_unknown_service_is_not_found() -> None:
    async with running_health(Readiness()) as (stub, _, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(ask("other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "other" in str(caught.value.details())


@pytest.mark.parametrize("method", ["Check", "List"])
async def test_bytes_that_are_no_request_are_an_invalid_argument(method: str) -> None:
    async with running_health(Readiness()) as (_, channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/grpc.health.v1.Health/{method}")(b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_watch_hears_the_status_and_every_change_of_it() -> None:
    readiness = Readiness()
    async with running_health(readiness) as (stub, _, _):
        watch = stub.Watch(ask(SERVICE))
        assert (await watch.read()).status == NOT_SERVING
        readiness.set(Phase.SERVING)
        assert (await watch.read()).status == SERVING
        readiness.set(Phase.LAME_DUCK)
        assert (await watch.read()).status == NOT_SERVING
        readiness.set(Phase.DRAINING)  # not ready before, not ready now: nothing to say
        readiness.set(Phase.SERVING)
        assert (await watch.read()).status == SERVING


async def test_a_watch_of_an_unknown_service_stays_open() -> None:
    readiness = Readiness()
    async with running_health(readiness) as (stub, _, _):
        watch = stub.Watch(ask("other"))
        assert (await watch.read()).status == SERVICE_UNKNOWN
        readiness.set(Phase.SERVING)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(watch.read()), 0.1)
        watch.cancel()


async def test_open_watches_do_not_hold_up_a_stopping_server() -> None:
    readiness = Readiness()
    async with running_health(readiness) as (stub, _, server):
        watches = [stub.Watch(ask(SERVICE)) for _ in range(5)]
        for watch in watches:
            await watch.read()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        readiness.close()
        await server.stop(30)
        assert loop.time() - begin < 5
        assert [await watch.code() for watch in watches] == [grpc.StatusCode.OK] * 5


class Reader:
    """The server's side of a watch by a client that reads at once, or never."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.stuck = stuck
        self.statuses: list[int] = []

    async def read(self) -> bytes:
        return ask(SERVICE).SerializeToString()

    async def write(self, body: bytes) -> None:
        self.statuses.append(health_pb2.HealthCheckResponse.FromString(body).status)
        if self.stuck:
            await asyncio.Event().wait()


async def test_a_watch_that_is_not_read_holds_up_nobody() -> None:
    readiness = Readiness()
    health = Health(readiness, [SERVICE])
    stuck, reader = Reader(stuck=True), Reader()
    tasks = [asyncio.create_task(health.watch(None, each)) for each in (stuck, reader)]
    for phase in (Phase.SERVING, Phase.DRAINING):
        await asyncio.sleep(0.01)
        readiness.set(phase)
    await asyncio.sleep(0.01)
    assert reader.statuses == [NOT_SERVING, SERVING, NOT_SERVING]
    assert stuck.statuses == [NOT_SERVING]
    readiness.close()
    await asyncio.wait_for(tasks[1], 1)
    tasks[0].cancel()
