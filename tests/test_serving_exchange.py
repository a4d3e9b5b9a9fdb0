"""Each finished request is one line in the log, under the id that its client sees."""

import asyncio
import logging
from typing import Any

import grpc
import pytest

from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.edge_harness import logged_fields, running_edge


@pytest.fixture(autouse=True)
def access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "serving.access")


def one_line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """The fields of the only line of the access log."""
    [line] = logged_fields(caplog, "serving.access")
    return line


async def test_a_finished_request_is_one_line_that_says_what_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = pb.GenerateRequest(label=7, count=3, seed=5, num_steps=4)
    async with running_edge() as edge:
        call = edge.stub.Generate(asked, metadata=[("x-request-id", "mine-1")])
        response = await call
        trailing = dict(await call.trailing_metadata())
    assert trailing["x-request-id"] == "mine-1"
    line = one_line(caplog)
    assert line.pop("seconds") >= line["queue_seconds"] + line["compute_seconds"] > 0
    assert str(line.pop("peer")).startswith("ipv4:127.0.0.1:")
    assert line.pop("queue_seconds") == pytest.approx(response.queue_seconds)
    assert line.pop("compute_seconds") == pytest.approx(response.compute_seconds)
    assert line == {
        "method": "Generate",
        "code": "OK",
        "request_id": "mine-1",
        "model": "fake",
        "label": 7,
        "count": 3,
        "first_index": 0,
        "seed": 5,
        "sampler": "ddpm",
        "num_steps": 4,
        "guidance_scale": 1.0,
    }


async def test_a_stream_shows_its_id_too(caplog: pytest.LogCaptureFixture) -> None:
    async with running_edge() as edge:
        call = edge.stub.GenerateStream(pb.GenerateRequest(label=7))
        assert len([event async for event in call]) == 2
        trailing = dict(await call.trailing_metadata())
    line = one_line(caplog)
    assert (line["method"], line["code"]) == ("GenerateStream", "OK")
    assert line["request_id"] == trailing["x-request-id"]
    assert line["compute_seconds"] > 0


async def test_a_refused_request_says_why_and_its_client_sees_the_id_beside_the_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_edge() as edge:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await edge.stub.Generate(pb.GenerateRequest(label=77))
    trailing = dict(caught.value.trailing_metadata())
    assert set(trailing) >= {"x-request-id", "grpc-status-details-bin"}
    line = one_line(caplog)
    assert line["code"] == "INVALID_ARGUMENT"
    assert line["request_id"] == trailing["x-request-id"]
    assert line["refusal"] == "invalid request: label: 77 is not in 0..9"
    assert "model" not in line


async def test_a_client_that_leaves_is_a_line_too(caplog: pytest.LogCaptureFixture) -> None:
    async with running_edge() as edge:
        edge.hold()
        call = edge.stub.Generate(pb.GenerateRequest(label=1))
        await edge.until(lambda: edge.service.exchanges.active == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await edge.until(lambda: edge.service.exchanges.active == 0)
        edge.release()
    assert (one_line(caplog)["code"], one_line(caplog)["model"]) == ("CANCELLED", "fake")
