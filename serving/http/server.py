"""Runs the HTTP application in the event loop of the gRPC server, on one port."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_SECONDS = 20.0
"""A request's headers are some hundred bytes, which take no time on any network."""

UNREAD_SECONDS = 300.0
"""A client that takes nothing of an answer for so long is gone."""

_BACKLOG = 128
_SHUTDOWN_SECONDS = 3


class HttpServer(uvicorn.Server):
    """Runs an application without signal handlers."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                lifespan="off",
                loop="none",
                interface="asgi3",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            )
        )
        self._listener = listener

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals alone: the server around this one handles them."""
        yield

    async def run_until_stopped(self) -> None:
        """Serves until `stop` is called."""
        await self.serve(sockets=[self._listener])

    def stop(self) -> None:
        """Makes `run_until_stopped` end soon."""
        self.should_exit = True


class _Connection(H11Protocol):
    """A connection that ends when its client says nothing, or takes nothing, for too long."""

    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Opens it."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Takes what has come of a request."""
        super().data_received(data)
        self._expect_head()

    def pause_writing(self) -> None:
        """The client is behind."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, whoever ended it."""
        super().connection_lost(exc)
        for timer in (self._head_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()

    def _expect_head(self) -> None:
        """Starts to wait for a request's head, or stops once it is there."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)
