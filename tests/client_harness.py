"""Both clients behind one face, and servers that fail as they are told."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import trustme
from grpc_health.v1 import health_pb2

from serving import refusal
from serving.client import AsyncClient, GeneratedImage, Preview, Summary
from serving.client.connection import READINESS
from simple_diffusion.v1 import diffusion_pb2 as pb


class BlockingClient:
    """AsyncClient, used as Client is: what holds for one is tried on the other by the same test."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncClient(*arguments, **settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            return self.runner.run(method(*arguments, **options))

        return call

    def stream(self, *arguments: Any, **options: Any) -> "BlockingStream":
        return BlockingStream(self.runner, self.client.stream(*arguments, **options))


class BlockingStream(Iterator[GeneratedImage | Preview]):
    """AsyncImageStream, used as ImageStream is."""

    def __init__(self, runner: asyncio.Runner, stream: Any) -> None:
        self._runner = runner
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> GeneratedImage | Preview:
        async def step() -> GeneratedImage | Preview | None:
            return await anext(self._stream, None)

        event = self._runner.run(step())
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        self._runner.run(self._stream.aclose())

    @property
    def seed(self) -> int:
        return int(self._stream.seed)

    @property
    def summary(self) -> Summary | None:
        summary: Summary | None = self._stream.summary
        return summary


@contextlib.contextmanager
def nobody_listening() -> Iterator[str]:
    """HOST:PORT where nobody listens, and nobody will."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"


class Certificates:
    """Files of a certificate for localhost, its key, and the authority that issued it."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        self.ca_file, self.cert_file = directory / "ca.pem", directory / "cert.pem"
        self.key_file = directory / "key.pem"
        directory.mkdir(parents=True, exist_ok=True)
        authority.cert_pem.write_to_path(self.ca_file)
        issued.cert_chain_pems[0].write_to_path(self.cert_file)
        issued.private_key_pem.write_to_path(self.key_file)

    def credentials(self, clients: "Certificates | None" = None) -> grpc.ServerCredentials:
        """What a server needs that shows this certificate, and maybe asks for one."""
        return grpc.ssl_server_credentials(
            [(self.key_file.read_bytes(), self.cert_file.read_bytes())],
            root_certificates=None if clients is None else clients.ca_file.read_bytes(),
            require_client_auth=clients is not None,
        )


# Servers that do as they are told

Context = grpc.ServicerContext
Unary = Callable[[pb.GenerateRequest, Context], pb.GenerateResponse]
Streamed = Callable[[pb.GenerateRequest, Context], Iterator[pb.GenerateStreamResponse]]


@dataclass
class ScriptedServer:
    """Answers requests with its answers one after the other; the last one again and again.

    Attributes:
        answers: for Generate.
        streams: for GenerateStream.
        requests: what was asked, in the order in which it came.
        asked_seconds: when that was.
        metadata: what came with it.
        ended: set when the first call is over, also if its client gave it up.
    """

    answers: list[Unary] = field(default_factory=list)
    streams: list[Streamed] = field(default_factory=list)
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    asked_seconds: list[float] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    target: str = ""
    serving: bool = True

    def generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        turn = self._note(request, context)
        return self.answers[min(turn, len(self.answers) - 1)](request, context)

    def generate_stream(
        self, request: pb.GenerateRequest, context: Context
    ) -> Iterator[pb.GenerateStreamResponse]:
        turn = self._note(request, context)
        return self.streams[min(turn, len(self.streams) - 1)](request, context)

    def check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if self.serving else status.NOT_SERVING)

    def _note(self, request: pb.GenerateRequest, context: Context) -> int:
        self.asked_seconds.append(time.monotonic())
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        context.add_callback(self.ended.set)
        return len(self.requests) - 1

    @contextlib.contextmanager
    def running(
        self, *, credentials: grpc.ServerCredentials | None = None, address: str = "127.0.0.1:0"
    ) -> Iterator[Self]:
        """Serves on a free port, or at an address."""
        server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        generate = grpc.unary_unary_rpc_method_handler(
            self.generate, pb.GenerateRequest.FromString, pb.GenerateResponse.SerializeToString
        )
        generate_stream = grpc.unary_stream_rpc_method_handler(
            self.generate_stream,
            pb.GenerateRequest.FromString,
            pb.GenerateStreamResponse.SerializeToString,
        )
        check = grpc.unary_unary_rpc_method_handler(
            self.check,
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        methods = {"Generate": generate, "GenerateStream": generate_stream}
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(READINESS, methods),
                grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),
            )
        )
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        self.target = f"127.0.0.1:{port}"
        server.start()
        try:
            yield self
        finally:
            server.stop(0).wait()


def refuse(error: refusal.RefusedError, *more_metadata: tuple[str, str | bytes]) -> Any:
    """An answer, for both methods, that is a refusal."""

    def answer(_: pb.GenerateRequest, context: Context) -> Any:
        context.set_trailing_metadata((*error.trailing_metadata, *more_metadata))
        context.abort(error.code, error.message)

    return answer


def accept(request: pb.GenerateRequest, _: Context) -> pb.GenerateResponse:
    """All images of the request."""
    indices = range(request.first_index, request.first_index + request.count)
    return pb.GenerateResponse(
        seed=request.seed, images=[image(request.seed, index) for index in indices]
    )


def stream_of(
    *positions: int, then: refusal.RefusedError | None = None, model_version: str = "1.0.0"
) -> Streamed:
    """A stream of the images at these positions of the request (none: all), then its end."""

    def answer(
        request: pb.GenerateRequest, context: Context
    ) -> Iterator[pb.GenerateStreamResponse]:
        for position in positions or range(request.count):
            index = request.first_index + position
            yield pb.GenerateStreamResponse(
                image=image(request.seed, index), model_version=model_version
            )
        if then is not None:
            refuse(then)(request, context)
        yield pb.GenerateStreamResponse(
            summary=pb.GenerateSummary(seed=request.seed, model_version=model_version),
            model_version=model_version,
        )

    return answer


def image(seed: int, index: int) -> pb.Image:
    """An image of one pixel that tells of which request it is."""
    pixel = bytes([(seed * 31 + index) % 251])
    return pb.Image(
        index=index, data=pixel, format=pb.IMAGE_FORMAT_RAW_UINT8, width=1, height=1, channels=1
    )
