"""deploy/envoy: what a client sees through a real Envoy is what it would see of a server."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client import (
    AsyncClient,
    GeneratedImage,
    Preview,
    ResourceExhaustedError,
    UnavailableError,
)
from serving.grpc_methods import SERVICE_NAME
from serving.health import Phase
from serving.tokens import Tokens
from simple_diffusion.v1 import diffusion_pb2 as pb
from simple_diffusion.v1.diffusion_pb2_grpc import DiffusionServiceStub
from tests.edge_harness import Edge, details, pixels, running_edge
from tests.envoy_process import EnvoyProcess, running_envoy
from tests.server_process import ServerProcess

TOKEN = "a-token-0123456789"


@dataclass
class Front:
    """Envoy, what stands behind it, and a channel to it."""

    envoy: EnvoyProcess
    edges: list[Edge]
    channel: grpc.aio.Channel

    @property
    def stub(self) -> Any:
        return DiffusionServiceStub(self.channel)

    async def warm(self) -> None:
        """Has Envoy connect to every replica: it counts a request once that is under way."""
        while not all(edge.finished("Generate", "OK") for edge in self.edges):
            await self.stub.Generate(pb.GenerateRequest(label=0), timeout=20)

    async def until_healthy(self, replicas: int) -> None:
        await asyncio.to_thread(self.envoy.until_healthy, replicas)

    def finished(self, method: str, code: str) -> float:
        return sum(edge.finished(method, code) for edge in self.edges)


@contextlib.asynccontextmanager
async def running_front(replicas: int = 1, **settings: Any) -> AsyncIterator[Front]:
    async with contextlib.AsyncExitStack() as stack:
        edges = [await stack.enter_async_context(running_edge(**settings)) for _ in range(replicas)]
        ports = [edge.port for edge in edges]
        envoy = await asyncio.to_thread(stack.enter_context, running_envoy(ports))
        options = [("grpc.enable_retries", 0)]
        channel = grpc.aio.insecure_channel(envoy.target, options=options)
        yield Front(envoy, edges, await stack.enter_async_context(channel))


async def test_a_request_gets_the_answer_that_it_gets_of_a_server() -> None:
    async with running_front() as front:
        request = pb.GenerateRequest(label=3, count=5, seed=7)
        through = await front.stub.Generate(request, timeout=20)
        assert pixels(through) == pixels(await front.edges[0].stub.Generate(request, timeout=20))
        catalog = await front.stub.ListModels(pb.ListModelsRequest(), timeout=20)
        assert catalog == await front.edges[0].stub.ListModels(pb.ListModelsRequest(), timeout=20)


async def test_a_request_goes_where_there_is_less_to_do() -> None:
    async with running_front(2) as front:
        await front.warm()
        for edge in front.edges:
            edge.hold()
        calls = [front.stub.Generate(pb.GenerateRequest(label=1), timeout=20) for _ in range(40)]
        for edge in front.edges:  # by chance alone one would have fewer, once in six times
            await edge.until(lambda edge=edge: edge.service.exchanges.active >= 16)
        for edge in front.edges:
            edge.release()
        await asyncio.gather(*calls)


async def test_previews_and_images_come_as_they_are_made() -> None:
    async with running_front() as front:
        [edge] = front.edges
        edge.network.on_call = lambda call: edge.hold() if call == 2 else None
        async with (
            AsyncClient(front.envoy.target) as client,
            client.stream(1, 1, num_steps=5, preview_every=1, seed=3) as events,
        ):
            first = await anext(events)
            assert isinstance(first, Preview)
            await edge.until(lambda: len(edge.network.batches) == 3)  # and there it is held
            edge.release()
            rest = [event async for event in events]
        assert [event.index for event in rest if isinstance(event, GeneratedImage)] == [0]


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_call_that_is_cancelled_frees_its_lanes(method: str) -> None:
    async with running_front() as front:
        [edge] = front.edges
        edge.slow_down(0.01)
        request = pb.GenerateRequest(label=1, count=4, num_steps=1000, preview_every=1)
        if method == "Generate":
            request.ClearField("preview_every")
        call = getattr(front.stub, method)(request, timeout=60)
        await edge.until(lambda: edge.engine.statistics().lanes_active == 4)
        call.cancel()
        await edge.until(lambda: edge.engine.statistics().lanes_active == 0)
        await edge.until(lambda: edge.finished(method, "CANCELLED") == 1)


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_the_callers_deadline_gets_to_the_server(method: str) -> None:
    async with running_front() as front:
        [edge] = front.edges
        edge.slow_down(0.02)  # which the server, that has measured nothing yet, cannot foresee
        request = pb.GenerateRequest(label=1, count=1, num_steps=1000)
        begin = time.monotonic()
        call = getattr(front.stub, method)(request, timeout=1.5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (call if method == "Generate" else call.read())
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 1.4 < time.monotonic() - begin < 6
        await edge.until(lambda: edge.engine.statistics().lanes_active == 0)
        await edge.until(
            lambda: edge.finished(method, "DEADLINE_EXCEEDED") + edge.finished(method, "CANCELLED")
        )


async def test_a_refusal_comes_as_it_is_and_is_not_tried_elsewhere() -> None:
    async with running_front(
        2, max_lanes=1, max_queued_images=1, max_images_per_request=1
    ) as front:
        request, accepted = pb.GenerateRequest(label=1, count=1), []
        for edge in front.edges:
            edge.hold()
            for active in (1, 2):  # one has the lane, one waits
                accepted.append(edge.stub.Generate(request, timeout=20))
                await edge.until(
                    lambda edge=edge, active=active: edge.service.exchanges.active == active
                )
                await edge.until(lambda edge=edge: len(edge.network.batches))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await front.stub.Generate(request, timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details(caught.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
        assert int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        async with AsyncClient(front.envoy.target, retry=None) as client:
            with pytest.raises(ResourceExhaustedError) as busy:
                await client.generate(1)
        assert busy.value.retry_after_seconds
        assert front.finished("Generate", "RESOURCE_EXHAUSTED") == 2, "each at one replica only"
        for edge in front.edges:
            edge.release()
        await asyncio.gather(*accepted)


async def test_a_bad_request_is_answered_with_every_bad_field() -> None:
    async with running_front() as front:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await front.stub.Generate(pb.GenerateRequest(label=99, count=0), timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    fields = details(caught.value, error_details_pb2.BadRequest).field_violations
    assert {violation.field for violation in fields} == {"label", "count"}


async def test_what_a_draining_replica_refuses_another_one_answers() -> None:
    async with running_front(2) as front:
        draining, other = front.edges
        await front.warm()
        other.hold()
        draining.readiness.set(Phase.DRAINING)
        # It refuses at once, so that it has the least to do for as long as Envoy does not know.
        request = pb.GenerateRequest(label=2, count=1, seed=1)
        calls = [front.stub.Generate(request, timeout=20) for _ in range(8)]
        await other.until(lambda: other.service.exchanges.active == 8)
        other.release()
        responses = await asyncio.gather(*calls)
        assert len({pixels(response)[0] for response in responses}) == 1
        assert draining.finished("Generate", "UNAVAILABLE") > 0
        await front.until_healthy(1)


async def test_a_replica_that_is_not_ready_gets_nothing_and_one_that_becomes_ready_does() -> None:
    async with running_front(2) as front:
        front.edges[0].readiness.set(Phase.LAME_DUCK)  # it would still accept
        await front.until_healthy(1)
        for _ in range(6):
            await front.stub.Generate(pb.GenerateRequest(label=2, count=1), timeout=20)
        assert front.edges[0].finished("Generate", "OK") == 0
        front.edges[1].readiness.set(Phase.LAME_DUCK)
        await front.until_healthy(0)
        async with AsyncClient(front.envoy.target, retry=None) as client:
            with pytest.raises(UnavailableError, match="no server behind 127.0.0.1:.* is ready"):
                await client.generate(2)
        front.edges[0].readiness.set(Phase.SERVING)
        await front.until_healthy(1)
        await front.stub.Generate(pb.GenerateRequest(label=2, count=1), timeout=20)
        assert front.edges[0].finished("Generate", "OK") == 1


async def test_health_is_answered_once_and_watching_is_not_offered() -> None:
    async with running_front() as front:
        stub = health_pb2_grpc.HealthStub(front.channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
        answer = await stub.Check(request, timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Watch(request, timeout=20).read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_what_the_caller_says_of_its_request_gets_through() -> None:
    async with running_front() as front:
        metadata = (("x-request-id", "of-the-caller-7"), ("with_underscores", "1"))
        call = front.stub.Generate(pb.GenerateRequest(label=1), timeout=20, metadata=metadata)
        await call
        assert dict(await call.trailing_metadata())["x-request-id"] == "of-the-caller-7"
        other = front.stub.Generate(pb.GenerateRequest(label=1), timeout=20)
        await other
        assert dict(await other.trailing_metadata())["x-request-id"], "of Envoy, for both logs"


async def test_a_token_gets_through(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    async with running_front(tokens=Tokens(file)) as front:
        async with AsyncClient(front.envoy.target, token=TOKEN) as client:
            assert len((await client.generate(1)).images) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await front.stub.Generate(pb.GenerateRequest(label=1), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_largest_response_gets_through_whole(mnist_server: ServerProcess) -> None:
    options: dict[str, Any] = {"seed": 5, "num_steps": 1, "sampler": "ddim", "guidance_scale": 1.0}
    with running_envoy([mnist_server.port]) as envoy:
        async with AsyncClient(envoy.target, timeout_seconds=60) as client:
            whole = await client.generate(4, 1024, **options)
            async with client.stream(4, 1024, **options) as events:
                streamed = [event async for event in events if isinstance(event, GeneratedImage)]
    expected = {image.index: image.pixels.tobytes() for image in whole.images}
    assert len(expected) == 1024
    assert {image.index: image.pixels.tobytes() for image in streamed} == expected


async def test_prometheus_gets_the_metrics_and_nothing_else_of_the_administration() -> None:
    async with running_front(2) as front, httpx.AsyncClient() as http:
        at = f"http://127.0.0.1:{front.envoy.metrics_port}"
        metrics = (await http.get(f"{at}/metrics")).text
        assert 'envoy_cluster_membership_healthy{envoy_cluster_name="replicas"} 2' in metrics
        for path in ("/", "/stats", "/config_dump", "/metrics/../quitquitquit", "/metrics/x"):
            assert (await http.get(at + path)).status_code == 404
        for path in ("/metrics", "/quitquitquit", "/drain_listeners"):
            assert (await http.post(at + path)).status_code == 404
        await front.until_healthy(2)
