"""The HTTP side: probes and metrics that follow the phase of the server, without its signals."""

import signal

import pytest
from starlette.applications import Starlette

from serving.health import Phase, Readiness
from serving.http.app import make_app
from tests.edge_harness import running_edge
from tests.http_harness import GENERATE, http_client, running_app


def app(readiness: Readiness | None = None) -> Starlette:
    """Probes and metrics alone."""
    return make_app(readiness or Readiness(), lambda: (b"answer 42\n", "text/plain; version=0.0.4"))


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
    async with running_app(app(readiness)) as client:
        assert (await client.get("/livez")).status_code == live
        answer = await client.get("/readyz")
        assert answer.status_code == ready
        assert answer.text == f"{phase.value}\n"


async def test_metrics_are_passed_on_with_their_content_type() -> None:
    async with running_app(app()) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.text == "answer 42\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_without_a_service_there_is_nothing_else() -> None:
    async with running_app(app()) as client:
        for path in ("/", "/v1/models", "/openapi.json"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post("/metrics")).status_code == 405


async def test_what_is_not_there_is_said_in_json_with_the_methods_that_are() -> None:
    async with running_edge() as edge, http_client(edge) as client:
        answer = await client.get("/v1/nothing")
        assert answer.status_code == 404
        assert answer.json()["error"]["status"] == "NOT_FOUND"
        answer = await client.get(GENERATE)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"
        assert answer.json()["error"]["code"] == 405


async def test_the_signals_stay_with_the_server_around_it() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    async with running_app(app()) as client:
        await client.get("/livez")
        assert {number: signal.getsignal(number) for number in handlers} == handlers
