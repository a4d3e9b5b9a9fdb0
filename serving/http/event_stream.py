"""An answer that is written piece by piece: server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Send

from serving.http import answers
from serving.http.negotiation import EVENTS

KEEP_ALIVE_SECONDS = 15.0
"""Proxies take a connection that is silent for a minute for dead."""

_LAST_WORDS_SECONDS = 1.0


class EventStream:
    """The answer to one request. Writing waits while the client is behind.

    Args:
        send: ASGI's.
        headers: of the answer.
    """

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send = send
        self._headers = headers
        self.begun = False

    async def begin(self) -> None:
        """Says that the request is accepted: whatever happens from now on is an event."""
        self.begun = True
        headers = {
            "content-type": f"{EVENTS}; charset=utf-8",
            "x-accel-buffering": "no",  # nginx would hold events back
            **self._headers,
        }
        await self._send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await self.write(answers.comment("accepted"))

    async def write(self, event: bytes) -> None:
        """Sends one event."""
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    @contextlib.asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Sends something now and then while the request waits for its turn."""

        async def keep() -> None:
            while True:
                await asyncio.sleep(KEEP_ALIVE_SECONDS)
                if self.begun:
                    await self.write(answers.comment("still here"))

        keeping = asyncio.create_task(keep())
        try:
            yield
        finally:
            keeping.cancel()

    async def fail(self, fields: dict[str, Any]) -> None:
        """Ends it with an event that says why, unless the client does not take even that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self.write(answers.server_sent("error", fields))
                await self.end()

    async def end(self) -> None:
        """Ends it."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
