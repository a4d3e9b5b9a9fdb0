"""Connections that say or take nothing end; a server that drains finishes what it took."""

import asyncio
import contextlib
import signal
import threading
from pathlib import Path

import httpx
import pytest

from serving.http import server as http_server
from tests.edge_harness import running_edge
from tests.fakes import write_tiny_bundle
from tests.http_harness import GENERATE, UNREAD, UNREAD_IMAGES, http_client, slow_stream
from tests.server_process import running_server, sample


async def ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Waits until the other side has ended a connection, without a word."""
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(4):  # less than uvicorn waits for another request
            assert await reader.read() == b""
    writer.transport.abort()


@pytest.mark.parametrize("sent", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nhost: x\r\n"])
async def test_a_head_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.2)
    async with running_edge() as edge, http_client(edge) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(sent)
        await ended(reader, writer)


async def test_a_head_that_stops_behind_a_whole_request_ends_the_connection_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.2)
    async with running_edge() as edge, http_client(edge) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readuntil(b"serving\n")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /livez HTTP/1.1\r\n")
        await ended(reader, writer)


async def test_a_request_that_takes_longer_than_a_head_may_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 0.2)
    async with running_edge() as edge, http_client(edge) as client:
        edge.slow_down(0.05)
        answer = await client.post(GENERATE, json={"label": 1, "num_steps": 10})
        assert answer.status_code == 200


async def test_a_client_that_takes_nothing_of_its_answer_is_disconnected_and_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "UNREAD_SECONDS", 0.3)
    async with running_edge(**UNREAD) as edge, http_client(edge) as client:
        _, writer = await slow_stream(client, label=2, count=UNREAD_IMAGES, num_steps=2)
        await edge.until(lambda: edge.finished("HttpGenerateStream", "CANCELLED") == 1)
        await edge.until(lambda: edge.engine.statistics().requests_active == 0)
        writer.transport.abort()


def test_what_was_accepted_over_http_is_finished_after_sigterm(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    flags = ("--provider", "cpu", "--max-lanes", "1", "--max-images-per-request", "2000")
    with running_server(bundle, flags=flags) as server:
        url = f"http://127.0.0.1:{server.http_port}{GENERATE}"
        answers: list[httpx.Response] = []

        def ask() -> None:
            body = {"label": 1, "count": 2000, "num_steps": 20, "seed": 1}
            answers.append(httpx.post(url, json=body, timeout=60, trust_env=False))

        asking = threading.Thread(target=ask)
        asking.start()
        lanes_in_use = sample("diffusion_lanes_in_use", model="tiny")
        server.until(lambda samples: samples.get(lanes_in_use) == 1)
        server.signal(signal.SIGTERM)
        while "not ready any more" not in server.log:
            asking.join(0.01)
        refused = httpx.post(url, json={"label": 1}, trust_env=False)
        asking.join(60)
        assert refused.status_code == 503
        assert server.exit_code() == 0
        [answer] = answers
        assert answer.status_code == 200
        assert len(answer.json()["images"]) == 2000
