"""The HTTP side of an edge under test, on a real port."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.types import ASGIApp

from serving.http.app import make_app
from serving.http.playground import ServerFacts
from serving.http.server import HttpServer
from serving.listening import open_http_port
from tests.edge_harness import Edge

GENERATE = "/v1/generate"


@contextlib.asynccontextmanager
async def running_app(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """Serves an application; yields a client of it."""
    listener = open_http_port("127.0.0.1", 0)
    server = HttpServer(app, listener)
    task = asyncio.create_task(server.run_until_stopped())
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=base_url, trust_env=False, timeout=20) as client:
            yield client
    finally:
        server.stop()
        await asyncio.wait_for(task, 10)
        listener.close()


@contextlib.asynccontextmanager
async def http_client(
    edge: Edge, hosts: frozenset[str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the HTTP side of an edge."""
    facts = ServerFacts(edge.port, tls=False, needs_token=edge.service.needs_token)
    app = make_app(edge.readiness, edge.metrics.exposition, edge.service, facts, hosts=hosts)
    async with running_app(app) as client:
        yield client


def violations(answer: httpx.Response) -> dict[str, str]:
    """The field violations of a 400, by field."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    [bad_request] = error["details"]
    assert bad_request["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    return {each["field"]: each["description"] for each in bad_request["field_violations"]}


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The server-sent events of a body: kind and data."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            found.append((fields["event"], json.loads(fields["data"])))
    return found
