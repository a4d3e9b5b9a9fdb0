"""Keeps pages of other sites from asking this server through the browser of somebody who can."""

from collections.abc import Set
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http import errors

_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
_OWN_SITES = frozenset({"same-origin", "none"})


class Guard:
    """Refuses what another site's page has sent, and says how answers may be used.

    There is no CORS: a browser shows no answer to another site, and asks before it sends JSON. This
    refuses also what it sends without asking, and names that somebody else has made to lead here
    (DNS rebinding).

    Args:
        app: the application.
        hosts: the host names that may be asked for; None for any.
        open_to_all: paths for which nothing of this holds.
    """

    def __init__(self, app: ASGIApp, *, hosts: Set[str] | None, open_to_all: Set[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._open_to_all = open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http" or scope["path"] in self._open_to_all:
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        if self._hosts is not None and _host_name(headers.get("host", "")) not in self._hosts:
            text = f"this server answers to {', '.join(sorted(self._hosts))}; see --http-host-name"
            await errors.http_response(403, text)(scope, receive, send_guarded)
        elif _is_of_another_site(headers):
            text = "pages of other sites may not ask this server"
            await errors.http_response(403, text)(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)


def _host_name(host: str) -> str:
    """The host of HOST or HOST:PORT, without the brackets of IPv6."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_of_another_site(headers: Headers) -> bool:
    # Browsers say it themselves, but to secure addresses only; the origin they always say, where it
    # matters.
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        # A link from elsewhere may lead here: it only shows a page.
        return site not in _OWN_SITES and headers.get("sec-fetch-mode") != "navigate"
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
