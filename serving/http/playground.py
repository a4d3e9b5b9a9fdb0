"""The page to play on: files of this package, and what they have to know of the server."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_PAGE = "index.html"

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "cache-control": "no-cache",
}

# Not the system's, which differ.
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the page shows of the server beside its models.

    Attributes:
        grpc_port: where the same images can be had.
        tls: whether that port speaks TLS.
        needs_token: whether requests need one.
    """

    grpc_port: int
    tls: bool
    needs_token: bool


def routes(facts: ServerFacts) -> list[Route]:
    """Returns / and what it asks for. Reads the files."""

    async def get_facts(_: Request) -> JSONResponse:
        return JSONResponse(asdict(facts))

    folder = resources.files("serving") / "page"
    found = [Route("/page/server.json", get_facts)]
    for file in folder.iterdir():
        path = "/" if file.name == _PAGE else f"/page/{file.name}"
        found.append(Route(path, _serve(file.name, file.read_bytes())))
    return found


def _serve(name: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    media_type = _TYPES[PurePath(name).suffix]

    async def get_file(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return get_file
