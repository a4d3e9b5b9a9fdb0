"""Takes the one message of a request from gRPC.

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

Context = grpc.aio.ServicerContext[bytes, bytes]


async def receive(context: Context, *, seconds: float = ARRIVAL_SECONDS) -> bytes:
    """Returns the message.

    Raises:
        RefusedError: INVALID_ARGUMENT, if there is none, or not all of it comes in time.
    """
    try:
        async with asyncio.timeout(seconds):
            message = await context.read()
    except TimeoutError:
        text = f"it did not arrive within {seconds:g} s"
        raise refusal.invalid([Violation("request", text, "NOT_RECEIVED")]) from None
    if not isinstance(message, bytes):  # grpc.aio.EOF
        raise refusal.invalid([Violation("request", "there is no message", "NOT_RECEIVED")])
    return message
