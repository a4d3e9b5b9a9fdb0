"""deploy/envoy: a replica that cannot be reached is passed over, whatever its health was."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from simple_diffusion.v1 import diffusion_pb2 as pb
from simple_diffusion.v1.diffusion_pb2_grpc import DiffusionServiceStub
from tests.edge_harness import running_edge
from tests.envoy_process import cluster, running_envoy
from tests.server_process import free_port

EJECTED = "outlier_detection.ejections_enforced_total"


class Way:
    """A way to a replica that can be cut."""

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self._to = to

    async def open(self) -> None:
        self._connections: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    def cut(self) -> None:
        """Ends its connections and takes no new ones."""
        self._server.close()
        for connection in self._connections:
            connection.transport.abort()

    async def _connected(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, forth = await asyncio.open_connection("127.0.0.1", self._to)
        self._connections |= {back, forth}
        await asyncio.gather(_pass_on(near, forth), _pass_on(far, back))


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while received := await source.read(65536):
            sink.write(received)
            await sink.drain()
    sink.close()


@contextlib.asynccontextmanager
async def opened(way: Way) -> AsyncIterator[Way]:
    await way.open()
    try:
        yield way
    finally:
        way.cut()


def only_outliers(envoy: dict[str, Any]) -> None:
    """Health is asked for once and never again; who is ejected is looked at every second."""
    replicas = cluster(envoy)
    for check in replicas["health_checks"]:
        check |= {"interval": "3600s", "no_traffic_interval": "3600s"}
    replicas["outlier_detection"]["interval"] = "1s"


async def test_a_replica_that_cannot_be_reached_is_ejected_costs_no_answer_and_comes_back() -> None:
    async with contextlib.AsyncExitStack() as stack:
        far, near = [await stack.enter_async_context(running_edge()) for _ in range(2)]
        way = await stack.enter_async_context(opened(Way(far.port)))
        front = running_envoy([way.port, near.port], only_outliers)
        envoy = await asyncio.to_thread(stack.enter_context, front)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(envoy.target))
        stub: Any = DiffusionServiceStub(channel)

        async def asked_until(condition: Callable[[], object]) -> int:
            """Asks until something is so; how often, each time with an answer."""
            async with asyncio.timeout(30):
                for number in itertools.count():
                    if await asyncio.to_thread(condition):
                        return number
                    await stub.Generate(pb.GenerateRequest(label=2, seed=1), timeout=20)
            raise AssertionError

        await asked_until(lambda: far.finished("Generate", "OK"))
        way.cut()
        before = near.finished("Generate", "OK")
        asked = await asked_until(lambda: envoy.stat(EJECTED))
        assert near.finished("Generate", "OK") == before + asked
        assert asked >= 3  # failures until it is ejected
        await asyncio.to_thread(envoy.until_healthy, 1)
        reached = far.finished("Generate", "OK")
        await way.open()
        await asyncio.to_thread(envoy.until_healthy, 2)  # its time is over
        await asked_until(lambda: far.finished("Generate", "OK") > reached)
