"""The HTTP application: probes and metrics for machines, the API, and a page for people."""

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from serving.health import Readiness
from serving.http import api, errors, openapi, playground
from serving.http.guard import Guard
from serving.http.playground import ServerFacts
from serving.service import DiffusionService


def make_app(
    readiness: Readiness,
    metrics: Callable[[], tuple[bytes, str]],
    service: DiffusionService | None = None,
    facts: ServerFacts | None = None,
    *,
    hosts: frozenset[str] | None = None,
) -> Starlette:
    """Returns the HTTP application.

    Args:
        readiness: decides /livez (200 while the process can do its work) and /readyz (200 while
            new clients should come here); otherwise 503, with the phase as the text.
        metrics: returns the body of /metrics and its content type.
        service: what the API asks; None for no API.
        facts: what the page is to know of this server; None for no page.
        hosts: the names under which the API and the page may be asked for; None for any.
    """

    async def get_metrics(_: Request) -> Response:
        body, content_type = metrics()
        return Response(body, media_type=content_type)

    async def get_livez(_: Request) -> Response:
        return _answer(readiness.alive, readiness.phase.value)

    async def get_readyz(_: Request) -> Response:
        return _answer(readiness.ready, readiness.phase.value)

    probes = [
        Route("/metrics", get_metrics),
        Route("/livez", get_livez),
        Route("/readyz", get_readyz),
    ]
    if service is None:
        return Starlette(routes=probes)
    page = [] if facts is None else playground.routes(facts)
    return Starlette(
        routes=[*probes, *api.routes(service), openapi.route(service), *page],
        middleware=[Middleware(Guard, hosts=hosts, open_to_all={route.path for route in probes})],
        exception_handlers={HTTPException: errors.on_http_exception},
    )


def _answer(good: bool, phase: str) -> Response:
    return PlainTextResponse(f"{phase}\n", status_code=200 if good else 503)
