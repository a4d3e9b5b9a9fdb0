"""The HTTP side of an edge under test, on a real port."""

import asyncio
import contextlib
import json
import socket
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
SMALL_BUFFER = 4096  # of connections, so that the server feels who does not read
UNREAD_IMAGES = 2000
"""Their events alone, without previews, are more than asyncio (64 KiB) and the connection hold: an
answer to somebody who does not read is never complete, however quick the engine is."""
UNREAD = {"max_images_per_request": UNREAD_IMAGES, "max_queued_images": UNREAD_IMAGES}
"""What an edge has to allow for that."""


@contextlib.asynccontextmanager
async def running_app(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """Serves an application; yields a client of it."""
    listener = open_http_port("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
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


async def slow_stream(
    client: httpx.AsyncClient, headers: str = "", **body: object
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Asks for events on a connection that holds next to nothing until somebody reads."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    connection.setblocking(False)
    address = (client.base_url.host, client.base_url.port)
    await asyncio.get_running_loop().sock_connect(connection, address)
    reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
    content = json.dumps(body)
    writer.write(
        f"POST {GENERATE} HTTP/1.0\r\nhost: x\r\naccept: text/event-stream\r\n{headers}"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        f"{content}".encode()
    )
    return reader, writer


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
