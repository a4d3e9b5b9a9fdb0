"""A synchronous, typed client of the DiffusionService."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client.errors import ClientError, from_rpc_error
from serving.images import Pixels, decode_raw
from simple_diffusion.v1 import diffusion_pb2 as pb
from simple_diffusion.v1.diffusion_pb2_grpc import DiffusionServiceStub

DEFAULT_TARGET = "localhost:50051"
READINESS = pb.DESCRIPTOR.services_by_name["DiffusionService"].full_name
"""The health name under which a server says that it is ready."""

SAMPLERS = {
    "ddpm": pb.SAMPLER_DDPM,
    "ddim": pb.SAMPLER_DDIM,
    "dpmpp_2m": pb.SAMPLER_DPMPP_2M,
    "ddim_stochastic": pb.SAMPLER_DDIM_STOCHASTIC,
}

_POLL_SECONDS = 0.1
_CHECK_SECONDS = 5.0

# gRPC retries these by itself, and waits as long as the server asks (grpc-retry-pushback-ms).
# A request is a pure function of its fields, so that another attempt is never harmful.
_RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}

# Slower than the server's limit of one ping in 10 s, or it would hang up ("too_many_pings").
_KEEPALIVE_MILLISECONDS = 30_000
_KEEPALIVE_TIMEOUT_MILLISECONDS = 10_000

_ResponseT = TypeVar("_ResponseT")


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """One image: its index under the seed, and its pixels, uint8 [H, W, C]."""

    index: int
    pixels: Pixels


@dataclass(frozen=True, eq=False)
class Generation:
    """The images of one request, in the order of their indices, and how they were made.

    The same label with these values gives the same pixels again.
    """

    images: tuple[GeneratedImage, ...]
    label: int
    seed: int
    model: str
    model_version: str
    sampler: str
    num_steps: int
    guidance_scale: float
    queue_seconds: float
    compute_seconds: float


class DiffusionClient:
    """Talks to one server. Safe to use from several threads; close it, or use it in a `with`.

    Args:
        target: HOST:PORT, or any other target that gRPC understands.
        timeout_seconds: how long a call may take, retries included, unless it says otherwise.
        retry: whether UNAVAILABLE and RESOURCE_EXHAUSTED are tried again.
    """

    def __init__(
        self, target: str = DEFAULT_TARGET, *, timeout_seconds: float = 300.0, retry: bool = True
    ) -> None:
        self._target = target
        self._timeout_seconds = timeout_seconds
        method_config: dict[str, object] = {"name": [{"service": READINESS}]}
        if retry:
            method_config["retryPolicy"] = _RETRY_POLICY
        self._channel = grpc.insecure_channel(
            target,
            options=[
                ("grpc.service_config", json.dumps({"methodConfig": [method_config]})),
                ("grpc.enable_retries", int(retry)),
                ("grpc.max_receive_message_length", -1),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MILLISECONDS),
            ],
        )
        self._diffusion = DiffusionServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that are running end with an error."""
        self._channel.close()

    def generate(
        self,
        label: int,
        count: int = 1,
        *,
        seed: int | None = None,
        model: str = "",
        sampler: str | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        first_index: int = 0,
        timeout_seconds: float | None = None,
    ) -> Generation:
        """Draws `count` images of `label`. What is None is left to the server's model.

        Args:
            label: class index.
            count: images wanted.
            seed: uint64; None lets the server draw one.
            model: name of a model; empty for the server's first.
            sampler: "ddpm", "ddim", "dpmpp_2m" or "ddim_stochastic".
            num_steps: network calls per image, 1 .. T of the model.
            guidance_scale: 0 .. 20; 1 is the plain conditional model.
            first_index: index of the first image under the seed.
            timeout_seconds: for this call; None for the client's.

        Raises:
            ClientError: if the server refuses, fails or cannot be reached.
            ValueError: if a value does not even fit the message.
        """
        if sampler is not None and sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}: {sampler!r}")
        request = pb.GenerateRequest(
            label=label,
            count=count,
            seed=seed,
            model=model,
            sampler=pb.SAMPLER_UNSPECIFIED if sampler is None else SAMPLERS[sampler],
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            format=pb.IMAGE_FORMAT_RAW_UINT8,
            first_index=first_index,
        )
        timeout = self._timeout(timeout_seconds)
        response = self._call(lambda: self._diffusion.Generate(request, timeout=timeout))
        return _generation(label, response)

    def list_models(self, timeout_seconds: float | None = None) -> pb.ListModelsResponse:
        """Returns what the server can draw. Raises ClientError."""
        timeout = self._timeout(timeout_seconds)
        return self._call(
            lambda: self._diffusion.ListModels(pb.ListModelsRequest(), timeout=timeout)
        )

    def health(self, service: str = READINESS, timeout_seconds: float | None = None) -> str:
        """Returns "SERVING" or "NOT_SERVING" for readiness, or for the process (service "").

        Raises:
            ClientError: if nobody answers, or the server has no such service.
        """
        timeout = self._timeout(timeout_seconds)
        request = health_pb2.HealthCheckRequest(service=service)
        response = self._call(lambda: self._health.Check(request, timeout=timeout))
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Waits until the server is ready for requests.

        Raises:
            ClientError: if it is not ready in time.
        """
        end_seconds = time.monotonic() + timeout_seconds
        while True:
            try:
                if self.health(timeout_seconds=_CHECK_SECONDS) == "SERVING":
                    return
                error = ClientError(f"the server at {self._target} is not ready", "UNAVAILABLE")
            except ClientError as unreachable:
                if unreachable.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                    raise
                error = unreachable
            if time.monotonic() + _POLL_SECONDS > end_seconds:
                raise error
            time.sleep(_POLL_SECONDS)

    def _timeout(self, timeout_seconds: float | None) -> float:
        return self._timeout_seconds if timeout_seconds is None else timeout_seconds

    def _call(self, call: Callable[[], _ResponseT]) -> _ResponseT:
        try:
            return call()
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target) from None


def _generation(label: int, response: pb.GenerateResponse) -> Generation:
    images = tuple(
        GeneratedImage(
            image.index, decode_raw(image.data, image.height, image.width, image.channels)
        )
        for image in response.images
    )
    names = {number: name for name, number in SAMPLERS.items()}
    return Generation(
        images=images,
        label=label,
        seed=response.seed,
        model=response.model,
        model_version=response.model_version,
        sampler=names.get(response.sampler, str(response.sampler)),
        num_steps=response.num_steps,
        guidance_scale=response.guidance_scale,
        queue_seconds=response.queue_seconds,
        compute_seconds=response.compute_seconds,
    )
