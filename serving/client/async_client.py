"""The client for asyncio: `AsyncClient`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.client import errors, results
from serving.client.connection import CHANNEL_OPTIONS, DEFAULT_TARGET, READINESS, Tls
from serving.client.errors import ClientError, DeadlineExceededError, UnavailableError
from serving.client.requests import RequestOptions, build_request
from serving.client.results import Catalog, Generation
from serving.client.resumption import Resumption
from serving.client.retry import DEFAULT_RETRY, Attempts, RetryPolicy
from serving.client.settings import HEALTH_POLL_SECONDS, Settings, health_check_seconds
from serving.client.streams import AsyncImageStream, cancelled_from_outside
from simple_diffusion.v1 import diffusion_pb2 as pb
from simple_diffusion.v1.diffusion_pb2_grpc import DiffusionServiceStub

_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


class _Server(NamedTuple):
    """The connection to one target."""

    channel: grpc.aio.Channel
    diffusion: Any  # the stub with its methods as coroutines
    health: health_pb2_grpc.HealthStub


class AsyncClient:
    """`Client` for asyncio: the same arguments, methods, results and errors.

    Close it with `aclose`, or use it in an `async with`. It belongs to the event loop in which it
    is used first.

    Args:
        target: HOST:PORT, or several with commas between them, which take turns. A server that
            cannot be reached is passed over, and what it was asked goes to the next one.
        timeout_seconds: above 0; how long a call may take, attempts and waits together, unless it
            says otherwise.
        retry: which failures are tried again and when; None for never.
        wait_for_ready: try UNAVAILABLE again for as long as there is time, because the server may
            still be starting.
        tls: None for a connection that is not encrypted.
        token: sent as `authorization: Bearer TOKEN`. Without `tls`, everybody on the way can read
            it.

    Raises:
        ValueError: for a target, timeout or token that makes no sense.
        OSError: if a file of `tls` cannot be read.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_seconds: float = 300.0,
        retry: RetryPolicy | None = DEFAULT_RETRY,
        wait_for_ready: bool = False,
        tls: Tls | None = None,
        token: str | None = None,
    ) -> None:
        self._settings = Settings.make(target, timeout_seconds, retry, wait_for_ready, token)
        self._credentials = None if tls is None else tls.credentials()
        self._closed = asyncio.Event()
        self._servers: dict[str, _Server] = {}  # made in the event loop, not before there is one

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections; calls that are running end with CallCancelledError."""
        self._closed.set()
        for server in self._servers.values():
            await server.channel.close(None)

    async def generate(
        self,
        label: int,
        count: int = 1,
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Draws `count` images of `label` and returns all of them.

        Args:
            label: class index, 0 .. labels of the model - 1.
            count: images wanted, 1 .. `Catalog.max_images_per_request`.
            timeout_seconds: above 0, for all attempts together; None for the client's.
            **options: what is left out or None is the model's default:
                seed: uint64; the same one gives the same images. None draws one, see the answer's.
                model: name of a model; empty for the server's first.
                sampler: "ddpm", "ddim", "dpmpp_2m" or "ddim_stochastic"; None for the model's.
                num_steps: reverse steps per image, 1 .. T of the model; None for the model's.
                guidance_scale: 0 .. 20, 1 is the plain conditional model; None for the model's.
                first_index: index of the first image under the seed, 0 or more.

        Raises:
            ClientError: if the server refuses, fails or cannot be reached.
            ValueError: if a value does not even fit the message.
        """
        request = build_request(label, count, **options)
        attempts = self._settings.attempts(timeout_seconds)
        response = await self._call(lambda server: server.diffusion.Generate, request, attempts)
        return results.parse_generation(label, response)

    def stream(
        self,
        label: int,
        count: int = 1,
        *,
        preview_every: int = 0,
        timeout_seconds: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncImageStream:
        """Draws the images that `generate` draws; iterating gives each one as it finishes.

        A stream that breaks is taken up again where it broke, as the retry policy says.

        Args:
            label: class index, 0 .. labels of the model - 1.
            count: images wanted, 1 .. `Catalog.max_images_per_request`.
            preview_every: 0 for none; k for a Preview of each image after every k-th step.
            timeout_seconds: above 0, for the whole stream, from now on; None for the client's.
            **options: what is left out or None is the model's default:
                seed: uint64; the same one gives the same images. None draws one, see the answer's.
                model: name of a model; empty for the server's first.
                sampler: "ddpm", "ddim", "dpmpp_2m" or "ddim_stochastic"; None for the model's.
                num_steps: reverse steps per image, 1 .. T of the model; None for the model's.
                guidance_scale: 0 .. 20, 1 is the plain conditional model; None for the model's.
                first_index: index of the first image under the seed, 0 or more.

        Raises:
            ValueError: if a value does not even fit the message. Iterating raises ClientError.
        """
        request = build_request(label, count, preview_every=preview_every, **options)
        attempts = self._settings.attempts(timeout_seconds)
        return AsyncImageStream(Resumption(request), attempts, self._send_stream, self._pause)

    async def models(self, *, timeout_seconds: float | None = None) -> Catalog:
        """Returns what the server can draw.

        Args:
            timeout_seconds: above 0, for all attempts together; None for the client's.

        Raises:
            ClientError: if the server fails or cannot be reached.
        """
        attempts = self._settings.attempts(timeout_seconds)
        request = pb.ListModelsRequest()
        response = await self._call(lambda server: server.diffusion.ListModels, request, attempts)
        return results.parse_catalog(response)

    async def health(
        self, service: str = READINESS, *, timeout_seconds: float | None = None
    ) -> str:
        """Returns "SERVING" or "NOT_SERVING" for readiness, or for the process (service "").

        Of several servers, the first that answers is heard. Nothing is waited for.

        Args:
            service: which health is asked for: the readiness, or "" for the process.
            timeout_seconds: above 0, for all servers together; None for the client's.

        Raises:
            ClientError: if nobody answers, or the server has no such service.
        """
        attempts = self._settings.health_attempts(timeout_seconds)
        request = health_pb2.HealthCheckRequest(service=service)
        response = await self._call(lambda server: server.health.Check, request, attempts)
        return results.parse_health(response)

    async def wait_ready(self, timeout_seconds: float) -> None:
        """Waits until a server is ready for requests.

        Args:
            timeout_seconds: how long, at least 0.

        Raises:
            ClientError: if none is ready in time.
        """
        end_seconds = time.monotonic() + timeout_seconds
        while True:
            failure: ClientError = errors.not_ready(self._settings.target)
            try:
                if (
                    await self.health(timeout_seconds=health_check_seconds(end_seconds))
                    == "SERVING"
                ):
                    return
            except (UnavailableError, DeadlineExceededError) as unreachable:
                failure = unreachable
            if time.monotonic() + HEALTH_POLL_SECONDS > end_seconds:
                raise failure
            await self._pause(HEALTH_POLL_SECONDS)

    async def _call(
        self,
        method: Callable[[_Server], Callable[..., Awaitable[_ResponseT]]],
        request: _RequestT,
        attempts: Attempts,
    ) -> _ResponseT:
        while True:
            call = method(self._server(attempts.target))
            timeout = attempts.remaining_seconds()
            try:
                return await call(request, timeout=timeout, metadata=self._settings.metadata)
            except grpc.RpcError as error:
                wait_seconds = attempts.after(errors.from_rpc_error(error, attempts.target))
            except asyncio.CancelledError:
                if self._closed.is_set() and not cancelled_from_outside():
                    raise errors.closed() from None
                raise
            await self._pause(wait_seconds)

    def _send_stream(self, target: str, request: pb.GenerateRequest, timeout: float) -> Any:
        call = self._server(target).diffusion.GenerateStream
        return call(request, timeout=timeout, metadata=self._settings.metadata)

    def _server(self, target: str) -> _Server:
        if self._closed.is_set():
            raise errors.closed()
        if target not in self._servers:
            self._servers[target] = _connect(target, self._credentials)
        return self._servers[target]

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except TimeoutError:
            return
        raise errors.closed()


def _connect(target: str, credentials: grpc.ChannelCredentials | None) -> _Server:
    channel = (
        grpc.aio.insecure_channel(target, CHANNEL_OPTIONS)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, CHANNEL_OPTIONS)
    )
    return _Server(channel, DiffusionServiceStub(channel), health_pb2_grpc.HealthStub(channel))
