"""The HTTP side: three pages that follow the phase of the server, without its signals."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import httpx
import pytest

from serving.health import Phase, Readiness
from serving.http import HttpServer, make_app
from serving.listening import open_http_port


@contextlib.asynccontextmanager
async def running_http(readiness: Readiness) -> AsyncIterator[httpx.AsyncClient]:
    listener = open_http_port("127.0.0.1", 0)
    server = HttpServer(
        make_app(readiness, lambda: (b"answer 42\n", "text/plain; version=0.0.4")), listener
    )
    task = asyncio.create_task(server.run_until_stopped())
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
            yield client
    finally:
        server.stop()
        await asyncio.wait_for(task, 10)
        listener.close()


@pytest.mark.parametrize(
    ("phase", "live", "ready"),
    [
        (Phase.STARTING, 200, 503),
        (Phase.SERVING, 200, 200),
        (Phase.LAME_DUCK, 200, 503),
        (Phase.DRAINING, 200, 503),
        (Phase.FAILED, 503, 503),
    ],
)
async def test_live_and_ready_follow_the_phase(phase: Phase, live: int, ready: int) -> None:
    readiness = Readiness()
    readiness.set(phase)
    async with running_http(readiness) as client:
        assert (await client.get("/livez")).status_code == live
        answer = await client.get("/readyz")
        assert answer.status_code == ready
        assert answer.text == f"{phase.value}\n"


async def test_metrics_are_passed_on_with_their_content_type() -> None:
    async with running_http(Readiness()) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.text == "answer 42\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_there_is_nothing_else() -> None:
    async with running_http(Readiness()) as client:
        assert (await client.get("/")).status_code == 404
        assert (await client.post("/metrics")).status_code == 405


async def test_the_signals_stay_with_the_server_around_it() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    async with running_http(Readiness()) as client:
        await client.get("/livez")
        assert {number: signal.getsignal(number) for number in handlers} == handlers
