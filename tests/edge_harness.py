"""The real service on a real port, around the real engine and a network made of arithmetic."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from serving import health, listening, reflection
from serving.call_metrics import counted
from serving.engine import Engine
from serving.engine_threads import EngineThreads
from serving.exchange import Finished
from serving.grpc_methods import SERVICE_NAME, GrpcMethods
from serving.health import Health, Phase, Readiness
from serving.metrics import Metrics
from serving.reflection import Reflection
from serving.service import DiffusionService
from serving.tokens import Tokens
from serving.validation import ServedModel
from simple_diffusion.v1 import diffusion_pb2 as pb
from simple_diffusion.v1.diffusion_pb2_grpc import DiffusionServiceStub
from tests.fakes import FakeNetwork, fake_model

MODEL = ServedModel(
    name="fake",
    version="1.2.3",
    label_names=tuple(f"label {number}" for number in range(10)),
    channels=1,
    height=4,
    width=4,
    num_train_timesteps=1000,
    default_sampler="ddpm",
    default_num_steps=5,
    default_guidance_scale=1.0,
)


@dataclass
class Edge:
    """A service under test."""

    service: DiffusionService
    readiness: Readiness
    metrics: Metrics
    network: FakeNetwork
    engine: Engine
    engine_threads: EngineThreads
    port: int
    channel: grpc.aio.Channel

    @property
    def stub(self) -> Any:
        return DiffusionServiceStub(self.channel)

    def hold(self) -> None:
        """Makes the network wait at its next call, until `release`."""
        assert self.network.gate is not None
        self.network.gate.clear()

    def release(self) -> None:
        assert self.network.gate is not None
        self.network.gate.set()

    def slow_down(self, seconds: float) -> None:
        """Makes each network call take this long."""
        self.network.on_call = lambda _: time.sleep(seconds)

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until something is so; fails after twenty seconds."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.002)

    async def raw(self, method: str, body: bytes) -> bytes:
        """Calls a unary method with any bytes at all."""
        return await self.channel.unary_unary(f"/{SERVICE_NAME}/{method}")(body, timeout=10)

    def finished(self, method: str, code: str) -> float:
        return self.metrics.value("diffusion_requests_finished_total", method=method, code=code)


@contextlib.asynccontextmanager
async def running_edge(
    *,
    max_lanes: int = 8,
    max_queued_images: int = 64,
    max_images_per_request: int = 32,
    request_timeout_seconds: float = 60.0,
    phase: Phase = Phase.SERVING,
    tokens: Tokens | None = None,
    on_finished: Finished | None = None,
) -> AsyncIterator[Edge]:
    model = fake_model(MODEL.num_train_timesteps, (MODEL.channels, MODEL.height, MODEL.width))
    network = FakeNetwork(gate=threading.Event())
    assert network.gate is not None
    network.gate.set()
    engine = Engine(model, network, max_lanes=max_lanes, max_queued_images=max_queued_images)
    readiness, metrics = Readiness(), Metrics()
    service = DiffusionService(
        readiness,
        metrics,
        max_images_per_request=max_images_per_request,
        request_timeout_seconds=request_timeout_seconds,
        tokens=tokens,
        on_finished=on_finished,
    )
    engine_threads = EngineThreads({MODEL.name: engine})
    engine_threads.start()
    service.attach([MODEL], engine_threads)
    readiness.set(phase)
    server = listening.make_grpc_server()
    server.add_generic_rpc_handlers(
        (
            counted(SERVICE_NAME, GrpcMethods(service).handler(), metrics),
            counted(health.SERVICE_NAME, Health(readiness, [SERVICE_NAME]).handler(), metrics),
            counted(reflection.SERVICE_NAME, Reflection([SERVICE_NAME], tokens).handler(), metrics),
        )
    )
    port = listening.open_grpc_port(server, "127.0.0.1", 0)
    await server.start()
    # Without gRPC's own retries: a test wants to see the first answer.
    options = [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        try:
            yield Edge(service, readiness, metrics, network, engine, engine_threads, port, channel)
        finally:
            network.gate.set()
            network.on_call = None
            engine_threads.stop(5)
            await server.stop(1)
            service.close()


def violations(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """The field violations of an INVALID_ARGUMENT, by field."""
    found = details(error, error_details_pb2.BadRequest)
    return {violation.field: violation.description for violation in found.field_violations}


def details(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    """The first status detail of a kind."""
    body = dict(error.trailing_metadata())["grpc-status-details-bin"]
    for packed in status_pb2.Status.FromString(body).details:
        if packed.Is(kind.DESCRIPTOR):
            detail = kind()
            packed.Unpack(detail)
            return detail
    raise AssertionError(f"no {kind} in the status")


def pixels(response: pb.GenerateResponse) -> dict[int, bytes]:
    """The data of each image, by index."""
    return {image.index: image.data for image in response.images}


def logged_fields(caplog: pytest.LogCaptureFixture, logger: str) -> list[dict[str, Any]]:
    """The fields of each line of a logger."""
    return [getattr(each, "fields", {}) for each in caplog.records if each.name == logger]
