"""Takes the one message of a request from gRPC, and what gRPC says of its caller.

Methods are registered as if their requests were streams, which looks the same on the wire: for a
request that ends without a message, gRPC's asyncio server would otherwise never call the method and
never answer, and it would wait without end for one that arrives in part.
"""

import asyncio

import grpc

from serving import refusal
from serving.validation import Violation

ARRIVAL_SECONDS = 20.0
"""A request is some hundred bytes, which take no time on any network."""

_LEAVING_SECONDS = 0.05

# A caller's RST_STREAM can reach the server a moment before the server's own timer for the same
# deadline fires. A cancellation this close to the deadline is counted as the deadline.
DEADLINE_SLACK_SECONDS = 0.1

Context = grpc.aio.ServicerContext[bytes, bytes]


def cancellation_code(seconds_left: float | None) -> grpc.StatusCode:
    """Returns why the work on a request was cancelled: its client left, or its deadline passed.

    Args:
        seconds_left: until its deadline; None without one.
    """
    expired = seconds_left is not None and seconds_left <= DEADLINE_SLACK_SECONDS
    return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED


async def receive(context: Context, *, seconds: float = ARRIVAL_SECONDS) -> bytes:
    """Returns the message.

    Raises:
        RefusedError: INVALID_ARGUMENT, if there is none, or not all of it comes in time.
    """
    try:
        async with asyncio.timeout(seconds):
            message: object = await context.read()
    except TimeoutError:
        text = f"it did not arrive within {seconds:g} s"
        raise refusal.invalid([Violation("request", text, "NOT_RECEIVED")]) from None
    if not isinstance(message, bytes):  # grpc.aio.EOF
        # Of a client that has left, this comes a moment before the cancellation.
        await asyncio.sleep(_LEAVING_SECONDS)
        raise refusal.invalid([Violation("request", "there is no message", "NOT_RECEIVED")])
    return message


class GrpcCall:
    """A caller that speaks gRPC."""

    system = "grpc"

    def __init__(self, context: Context) -> None:
        self._context = context
        self.metadata = tuple(context.invocation_metadata() or ())
        self.peer = context.peer()

    @property
    def seconds_left(self) -> float | None:
        """How long until the caller's deadline; None for a call without one."""
        # The published types say that there always is one.
        return self._context.time_remaining()
