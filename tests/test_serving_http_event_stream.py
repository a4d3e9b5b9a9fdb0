"""Events come as they happen: every image, and as many previews as the reader has time for."""

import base64
from typing import Any

import pytest

from serving.http import event_stream
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.edge_harness import pixels, running_edge
from tests.http_harness import GENERATE, UNREAD, UNREAD_IMAGES, events, http_client, slow_stream

EVENTS = {"accept": "text/event-stream"}


def images(found: list[tuple[str, dict[str, Any]]]) -> dict[int, bytes]:
    return {
        fields["index"]: base64.b64decode(fields["data"])
        for kind, fields in found
        if kind == "image"
    }


async def test_a_stream_has_the_images_of_grpc_previews_and_a_summary_at_the_end() -> None:
    body = {"label": 7, "count": 3, "seed": 5, "num_steps": 6}
    async with running_edge() as edge, http_client(edge) as client:
        drawn = await edge.stub.Generate(pb.GenerateRequest(**body))
        edge.slow_down(0.02)
        answer = await client.post(GENERATE, json={**body, "preview_every": 2}, headers=EVENTS)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        found = events(answer.text)
        assert edge.finished("HttpGenerateStream", "OK") == 1
    assert images(found) == pixels(drawn)
    previews = {(each["image"]["index"], each["step"]) for kind, each in found if kind == "preview"}
    assert previews == {(index, step) for index in range(3) for step in (2, 4)}
    kind, summary = found[-1]
    assert kind == "summary"
    assert (summary["seed"], summary["num_steps"], summary["model"]) == ("5", 6, "fake")
    assert summary["compute_seconds"] > 0


async def test_a_refusal_is_an_http_status_and_no_event() -> None:
    async with running_edge() as edge, http_client(edge) as client:
        answer = await client.post(GENERATE, json={"label": 10}, headers=EVENTS)
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/json"
        assert edge.finished("HttpGenerateStream", "INVALID_ARGUMENT") == 1


async def test_what_fails_later_is_an_event() -> None:
    async with running_edge() as edge, http_client(edge) as client:
        edge.network.raise_on = {3}
        answer = await client.post(GENERATE, json={"label": 1}, headers=EVENTS)
        [(kind, found)] = events(answer.text)
        assert kind == "error"
        assert found["error"]["code"] == 500
        assert edge.finished("HttpGenerateStream", "INTERNAL") == 1


async def test_who_waits_is_told_at_once_that_the_request_is_accepted_and_now_and_then_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_SECONDS", 0.02)
    async with running_edge() as edge, http_client(edge) as client:
        edge.hold()
        async with client.stream("POST", GENERATE, json={"label": 1}, headers=EVENTS) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == ": accepted"
            for _ in range(2):
                assert await anext(lines) == ""
                assert await anext(lines) == ": still here"
            edge.release()
            rest = [line async for line in lines]
        assert "event: summary" in rest


async def test_a_slow_reader_loses_previews_and_no_image_and_holds_up_nobody() -> None:
    asked = {"label": 2, "count": 32, "num_steps": 1000, "seed": 4}
    async with running_edge() as edge, http_client(edge) as client:
        drawn = await edge.stub.Generate(pb.GenerateRequest(**asked))
        reader, writer = await slow_stream(client, **asked, preview_every=1)
        # Nothing is read until the engine is done with it.
        await edge.until(lambda: edge.engine.statistics().totals.images_finished == 64)
        other = await client.post(GENERATE, json={"label": 1, "num_steps": 3})
        assert other.status_code == 200
        assert edge.finished("HttpGenerateStream", "OK") == 0, "it waits for its reader"
        text = (await reader.read()).decode()
        writer.close()
    found = events(text.partition("\r\n\r\n")[2])
    assert images(found) == pixels(drawn)
    assert found[-1][0] == "summary"
    dropped = edge.metrics.value("diffusion_previews_dropped_total", model="fake")
    previews = sum(kind == "preview" for kind, _ in found)
    assert previews + dropped == 32 * 999
    assert previews < dropped


async def test_a_stream_that_nobody_reads_ends_at_its_deadline() -> None:
    async with running_edge(**UNREAD) as edge, http_client(edge) as client:
        _, writer = await slow_stream(
            client, "request-timeout: 3\r\n", label=2, count=UNREAD_IMAGES, num_steps=2
        )
        await edge.until(lambda: edge.engine.statistics().totals.images_finished == UNREAD_IMAGES)
        await edge.until(lambda: edge.finished("HttpGenerateStream", "DEADLINE_EXCEEDED") == 1)
        assert edge.service.exchanges.active == 0
        writer.transport.abort()
