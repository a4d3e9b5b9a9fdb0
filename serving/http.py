"""The HTTP side of the server: /metrics, /livez and /readyz."""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from serving.health import Readiness

_BACKLOG = 128
_SHUTDOWN_SECONDS = 1


def make_app(readiness: Readiness, metrics: Callable[[], tuple[bytes, str]]) -> Starlette:
    """Returns the HTTP application.

    Args:
        readiness: decides /livez (200 while the process can do its work) and /readyz (200 while
            new clients should come here); otherwise 503, with the phase as the text.
        metrics: returns the body of /metrics and its content type.
    """

    async def get_metrics(_: Request) -> Response:
        body, content_type = metrics()
        return Response(body, media_type=content_type)

    async def get_livez(_: Request) -> Response:
        return _answer(readiness.alive, readiness.phase.value)

    async def get_readyz(_: Request) -> Response:
        return _answer(readiness.ready, readiness.phase.value)

    return Starlette(
        routes=[
            Route("/metrics", get_metrics),
            Route("/livez", get_livez),
            Route("/readyz", get_readyz),
        ]
    )


def _answer(good: bool, phase: str) -> Response:
    return PlainTextResponse(f"{phase}\n", status_code=200 if good else 503)


class HttpServer(uvicorn.Server):
    """Runs an application in the event loop of the gRPC server, without signal handlers."""

    def __init__(self, app: Starlette, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                loop="none",
                interface="asgi3",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
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
