"""Every call of every service is counted, with its type, its messages and its one status."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serving import listening
from serving.call_metrics import counted
from serving.grpc_methods import SERVICE_NAME
from serving.health import SERVICE_NAME as HEALTH
from serving.metrics import Metrics
from serving.reflection import SERVICE_NAME as REFLECTION
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.edge_harness import Edge, running_edge

TYPES = {
    (SERVICE_NAME, "Generate"): "unary",
    (SERVICE_NAME, "GenerateStream"): "server_stream",
    (SERVICE_NAME, "ListModels"): "unary",
    (HEALTH, "Check"): "unary",
    (HEALTH, "List"): "unary",
    (HEALTH, "Watch"): "server_stream",
    (REFLECTION, "ServerReflectionInfo"): "bidi_stream",
}


def labels(service: str, method: str) -> dict[str, str]:
    kind = TYPES[service, method]
    return {"grpc_type": kind, "grpc_service": service, "grpc_method": method}


def messages(metrics: Metrics, service: str, method: str) -> tuple[float, float, float]:
    """(calls started, messages received, messages sent) of a method."""
    names = ("started_total", "msg_received_total", "msg_sent_total")
    values = [metrics.value(f"grpc_server_{name}", **labels(service, method)) for name in names]
    return values[0], values[1], values[2]


def handled(metrics: Metrics, service: str, method: str, code: str) -> float:
    name = "grpc_server_handled_total"
    return metrics.value(name, **labels(service, method), grpc_code=code)


async def test_calls_and_messages_are_counted_by_method_and_status() -> None:
    async with running_edge() as edge:
        await edge.stub.Generate(pb.GenerateRequest(label=1, count=3))
        with pytest.raises(grpc.aio.AioRpcError):
            await edge.stub.Generate(pb.GenerateRequest(label=11))
        call = edge.stub.GenerateStream(pb.GenerateRequest(label=1, count=3))
        assert len([event async for event in call]) == 4
        metrics = edge.metrics
        assert messages(metrics, SERVICE_NAME, "Generate") == (2, 2, 1)
        assert handled(metrics, SERVICE_NAME, "Generate", "OK") == 1
        assert handled(metrics, SERVICE_NAME, "Generate", "InvalidArgument") == 1
        assert messages(metrics, SERVICE_NAME, "GenerateStream") == (1, 1, 4)
        assert handled(metrics, SERVICE_NAME, "GenerateStream", "OK") == 1
        count = "grpc_server_handling_seconds_count"
        assert metrics.value(count, **labels(SERVICE_NAME, "Generate")) == 2


async def test_health_and_reflection_are_counted_too() -> None:
    async with running_edge() as edge:
        stub = health_pb2_grpc.HealthStub(edge.channel)
        await stub.Check(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        talk = reflection_pb2_grpc.ServerReflectionStub(edge.channel).ServerReflectionInfo(
            iter([asked, asked])
        )
        assert len([answer async for answer in talk]) == 2
        assert messages(edge.metrics, HEALTH, "Check") == (2, 2, 1)
        assert handled(edge.metrics, HEALTH, "Check", "NotFound") == 1
        assert messages(edge.metrics, HEALTH, "Watch") == (1, 1, 1)
        assert messages(edge.metrics, REFLECTION, "ServerReflectionInfo") == (1, 2, 2)
        await edge.until(
            lambda: handled(edge.metrics, REFLECTION, "ServerReflectionInfo", "OK") == 1
        )
        watch.cancel()
        await edge.until(lambda: handled(edge.metrics, HEALTH, "Watch", "Canceled") == 1)


async def ended(edge: Edge, code: str) -> None:
    await edge.until(lambda: handled(edge.metrics, SERVICE_NAME, "Generate", code) == 1)


async def test_a_client_that_leaves_and_a_deadline_that_passes_are_told_apart() -> None:
    async with running_edge() as edge:
        edge.hold()
        leaving = edge.stub.Generate(pb.GenerateRequest(label=1))
        # Long enough that the server has it before it passes, on a busy machine too.
        late = asyncio.ensure_future(edge.stub.Generate(pb.GenerateRequest(label=1), timeout=3))
        await edge.until(lambda: messages(edge.metrics, SERVICE_NAME, "Generate")[1] == 2)
        leaving.cancel()
        await ended(edge, "Canceled")
        with pytest.raises(grpc.aio.AioRpcError):
            await late
        await ended(edge, "DeadlineExceeded")


async def test_methods_are_there_with_zeros_before_anybody_calls_and_unknown_ones_never() -> None:
    async with running_edge() as edge:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await edge.raw("Destroy", b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        body = edge.metrics.exposition()[0].decode()
    started = [line for line in body.splitlines() if line.startswith("grpc_server_started_total{")]
    assert len(started) == len(TYPES)
    assert all(line.endswith(" 0.0") for line in started)


async def test_an_exception_that_leaves_a_method_is_counted_as_grpc_answers_it() -> None:
    class Broken:
        async def generate(self, _: AsyncIterator[bytes], context: Any) -> bytes:
            raise OSError("not foreseen")

    inner = grpc.method_handlers_generic_handler(
        SERVICE_NAME, {"Generate": grpc.stream_unary_rpc_method_handler(Broken().generate)}
    )
    metrics = Metrics()
    server = listening.make_grpc_server()
    server.add_generic_rpc_handlers((counted(SERVICE_NAME, inner, metrics),))
    port = listening.open_grpc_port(server, "127.0.0.1", 0)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{SERVICE_NAME}/Generate")(b"")
    await server.stop(1)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert handled(metrics, SERVICE_NAME, "Generate", "Unknown") == 1
    assert messages(metrics, SERVICE_NAME, "Generate") == (1, 0, 0)
