"""Whether this process is alive and whether it is ready, and the gRPC health service that says so.

The stock asyncio servicer of grpcio-health-checking can be wedged by one Watch that is not read,
and its open watches use up the grace of a stopping server. Here every watch runs on its own and
sends the newest status it has not sent yet, so a watch that is not read holds up nobody.
"""

import asyncio
import enum
from collections.abc import Iterable
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

from serving.receiving import Context, receive
from serving.refusal import RefusedError

_RequestT = TypeVar("_RequestT", bound=Message)

PROCESS = ""
"""The health name of the process: a supervisor restarts it when this is not SERVING."""

SERVICE_NAME = "grpc.health.v1.Health"


class Phase(enum.Enum):
    """Where a server stands in its life."""

    STARTING = "starting"
    """Loading and testing models; requests are refused."""
    SERVING = "serving"
    """A warm-up step has passed; requests are accepted."""
    LAME_DUCK = "lame duck"
    """About to drain: not ready any more, but still accepting, while load balancers notice."""
    STALLED = "stalled"
    """The engine has been silent for too long; requests are refused until it goes on."""
    DRAINING = "draining"
    """Accepted requests are being finished; new ones are refused."""
    FAILED = "failed"
    """The engine is dead; requests are refused and the process is about to exit."""


class Readiness:
    """The phase of this server, for everybody who has to know. Belongs to the event loop."""

    def __init__(self) -> None:
        self._phase = Phase.STARTING
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self._phase

    @property
    def ready(self) -> bool:
        """Whether new clients should come here."""
        return self._phase is Phase.SERVING

    @property
    def accepting(self) -> bool:
        """Whether a request that arrives now is taken."""
        return self._phase in (Phase.SERVING, Phase.LAME_DUCK)

    @property
    def alive(self) -> bool:
        """Whether this process can still do its work, now or once it is ready."""
        return self._phase is not Phase.FAILED

    @property
    def closed(self) -> bool:
        """Whether the watches have been told to end."""
        return self._closed

    def set(self, phase: Phase) -> None:
        """Enters a phase and wakes everybody who watches."""
        self._phase = phase
        self._wake()

    def close(self) -> None:
        """Ends the watches: the server is about to stop."""
        self._closed = True
        self._wake()

    def changed(self) -> asyncio.Event:
        """Returns an event that is set at the next change. Take it before reading the state."""
        return self._changed

    def _wake(self) -> None:
        woken, self._changed = self._changed, asyncio.Event()
        woken.set()


class Health:
    """The service grpc.health.v1.Health.

    The name "" is the process: SERVING while it loads, serves and drains. The names given in
    `services` are readiness: SERVING only between the warm-up step and the start of a drain.
    """

    def __init__(self, readiness: Readiness, services: Iterable[str]) -> None:
        self._readiness = readiness
        self._services = frozenset(services)

    def handler(self) -> "grpc.GenericRpcHandler[bytes, bytes]":
        """Returns what a grpc.aio server is given. Requests are read and parsed in the methods."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Check": grpc.stream_unary_rpc_method_handler(self.check),
                "List": grpc.stream_unary_rpc_method_handler(self.list),
                "Watch": grpc.stream_stream_rpc_method_handler(self.watch),
            },
        )

    async def check(self, _: object, context: Context) -> bytes:
        """Answers once. An unknown name is NOT_FOUND."""
        name = (await _received(context, health_pb2.HealthCheckRequest)).service
        status = self._status(name)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {name[:100]!r} here")
        return _response(status)

    async def list(self, _: object, context: Context) -> bytes:
        """Answers with the status of every name."""
        await _received(context, health_pb2.HealthListRequest)
        answer = health_pb2.HealthListResponse()
        for name in (PROCESS, *self._services):
            answer.statuses[name].status = self._status(name)
        return bytes(answer.SerializeToString())

    async def watch(self, _: object, context: Context) -> None:
        """Sends the status now and at every change, until the server stops."""
        name = (await _received(context, health_pb2.HealthCheckRequest)).service
        sent: int | None = None
        while True:
            changed = self._readiness.changed()
            status = self._status(name)
            if status != sent:
                await context.write(_response(status))
                sent = status
            elif self._readiness.closed:
                return
            else:
                await changed.wait()

    def _status(self, name: str) -> int:
        if name == PROCESS:
            good = self._readiness.alive
        elif name in self._services:
            good = self._readiness.ready
        else:
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        return int(
            health_pb2.HealthCheckResponse.SERVING
            if good
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )


async def _received(context: Context, kind: type[_RequestT]) -> _RequestT:
    """Returns the request of a call."""
    try:
        request = await receive(context)
    except RefusedError as refused:
        await context.abort(refused.code, refused.message, refused.trailing_metadata)
    try:
        return kind.FromString(request)
    except DecodeError:
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, f"the request is not a {kind.__name__}"
        )


def _response(status: int) -> bytes:
    message = health_pb2.HealthCheckResponse(status=status)
    return bytes(message.SerializeToString())
