"""Takes the body of an HTTP request, and what its headers say of the caller."""

import asyncio
import re
import time

from starlette.requests import ClientDisconnect, Request

from serving import refusal
from serving.parsing import MAX_REQUEST_BYTES
from serving.receiving import ARRIVAL_SECONDS
from serving.validation import Violation

TIMEOUT_HEADER = "request-timeout"
"""How many seconds the caller waits at most, as a decimal number."""

TIMEOUT_PATTERN = r"^[0-9]{1,5}(\.[0-9]{1,9})?$"


class HttpCall:
    """A caller that speaks HTTP."""

    system = "http"

    def __init__(self, request: Request) -> None:
        self._deadline_seconds: float | None = None
        self._timeout = request.headers.get(TIMEOUT_HEADER)
        timeout_seconds = _timeout_seconds(self._timeout)
        if timeout_seconds is not None:
            self._deadline_seconds = time.monotonic() + timeout_seconds
        self.metadata: tuple[tuple[str, str | bytes], ...] = tuple(request.headers.items())
        client = request.client
        self.peer = "unknown" if client is None else f"{client.host}:{client.port}"

    @property
    def seconds_left(self) -> float | None:
        """How long until the caller's deadline; None for a call without one."""
        if self._deadline_seconds is None:
            return None
        return self._deadline_seconds - time.monotonic()

    def check(self) -> None:
        """Looks at the headers.

        Raises:
            RefusedError: INVALID_ARGUMENT, for a timeout that is none.
        """
        if self._timeout is not None and self._deadline_seconds is None:
            text = f"{self._timeout[:40]!r} is not a number of seconds in 0..99999"
            raise refusal.invalid([Violation(TIMEOUT_HEADER, text, "OUT_OF_RANGE")])


def _timeout_seconds(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(TIMEOUT_PATTERN, text) else None


async def receive_body(request: Request, *, seconds: float = ARRIVAL_SECONDS) -> bytes:
    """Returns the body.

    Raises:
        RefusedError: INVALID_ARGUMENT, if it is too large or does not arrive in time.
        CancelledError: the client has left.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_REQUEST_BYTES:
                    text = f"more than {MAX_REQUEST_BYTES} bytes, which is the limit"
                    raise refusal.invalid([Violation("request", text, "TOO_LARGE")])
    except ClientDisconnect:
        raise asyncio.CancelledError from None
    except TimeoutError:
        text = f"it did not arrive within {seconds:g} s"
        raise refusal.invalid([Violation("request", text, "NOT_RECEIVED")]) from None
    return bytes(body)
