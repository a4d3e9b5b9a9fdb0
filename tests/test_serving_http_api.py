"""The JSON API draws what gRPC draws, and ends every request with one true status."""

import asyncio
import base64
import contextlib
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.health import Phase
from serving.http.openapi import document
from serving.images import decode_png, encode_png, grid
from serving.tokens import Tokens
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.edge_harness import Edge, pixels, running_edge
from tests.http_harness import GENERATE, events, http_client, violations

TOKEN = "a-token-that-is-long-enough"
EVENTS = {"accept": "text/event-stream"}
JSON = {"content-type": "application/json"}


def data(images: list[dict[str, Any]]) -> dict[int, bytes]:
    """The bytes of each image, by index."""
    return {image["index"]: base64.b64decode(image["data"]) for image in images}


async def left(edge: Edge, method: str, code: str) -> None:
    """Waits until a request has ended so, and checks that nothing of it is left."""
    await edge.until(lambda: edge.finished(method, code) == 1)
    await edge.until(lambda: edge.engine.statistics().requests_active == 0)
    await edge.until(lambda: edge.engine.statistics().lanes_active == 0)
    assert edge.service.exchanges.active == 0
    assert edge.metrics.value("diffusion_requests_started_total", method=method) == 1


@pytest.mark.parametrize("image_format", ["IMAGE_FORMAT_PNG", "IMAGE_FORMAT_RAW_UINT8"])
async def test_an_answer_in_json_is_that_of_grpc(image_format: str) -> None:
    body = {
        "label": 7,
        "count": 3,
        "seed": 5,
        "model": "fake",
        "sampler": "SAMPLER_DDIM",
        "num_steps": 4,
        "guidance_scale": 1.5,
        "format": image_format,
        "first_index": 2,
    }
    async with running_edge() as edge, http_client(edge) as client:
        drawn = await edge.stub.Generate(pb.GenerateRequest(**body))
        answer = await client.post(GENERATE, json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["server-timing"].startswith("queue;dur=")
    found = answer.json()
    images = found.pop("images")
    assert data(images) == pixels(drawn)
    for image in images:
        assert image["format"] == image_format
        assert (image["width"], image["height"], image["channels"]) == (4, 4, 1)
    assert found.pop("queue_seconds") >= 0
    assert found.pop("compute_seconds") > 0
    assert found == {
        "seed": "5",
        "model": "fake",
        "model_version": "1.2.3",
        "sampler": "SAMPLER_DDIM",
        "num_steps": 4,
        "guidance_scale": 1.5,
    }
    assert edge.finished("HttpGenerate", "OK") == 1


async def test_an_image_that_is_asked_for_is_the_grid_that_the_command_writes() -> None:
    body = {"label": 7, "count": 5, "seed": 3}
    async with running_edge() as edge, http_client(edge) as client:
        drawn = await edge.stub.Generate(pb.GenerateRequest(**body))
        answer = await client.post(GENERATE, json=body, headers={"accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["diffusion-seed"] == "3"
    expected = grid([decode_png(image.data) for image in drawn.images])
    assert answer.content == encode_png(expected)


@pytest.mark.parametrize("seed", [2**64 - 1, str(2**64 - 1)])
async def test_a_seed_that_no_double_holds_survives_as_number_and_as_text(seed: int | str) -> None:
    async with running_edge() as edge, http_client(edge) as client:
        drawn = await edge.stub.Generate(pb.GenerateRequest(label=1, seed=2**64 - 1))
        found = (await client.post(GENERATE, json={"label": 1, "seed": seed})).json()
    assert found["seed"] == "18446744073709551615"
    assert data(found["images"]) == pixels(drawn)


async def test_every_bad_field_is_named_whether_its_type_or_its_range_is_wrong() -> None:
    async with running_edge() as edge, http_client(edge) as client:
        answer = await client.post(
            GENERATE, json={"label": "7", "count": 1.5, "seed": "007", "sampler": "ddim", "x": 1}
        )
        assert violations(answer) == {
            "label": '"7" is not a whole number',
            "count": "1.5 is not a whole number",
            "seed": '"007" is not a whole number',
            "sampler": '"ddim" is not one of SAMPLER_UNSPECIFIED, SAMPLER_DDPM, SAMPLER_DDIM,'
            " SAMPLER_DPMPP_2M, SAMPLER_DDIM_STOCHASTIC",
            "x": "there is no such field; there are label, count, seed, model, sampler, num_steps,"
            " guidance_scale, format, first_index, preview_every",
        }
        answer = await client.post(GENERATE, json={"count": 33, "num_steps": 0, "preview_every": 1})
        assert violations(answer) == {
            "label": "is not set; it must be in 0..9",
            "count": "33 is not in 1..32",
            "num_steps": "0 is not in 1..1000",
            "preview_every": "1 is not 0; only GenerateStream sends previews",
        }
        assert edge.finished("HttpGenerate", "INVALID_ARGUMENT") == 2
        assert not edge.network.batches


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\x00", "not JSON"),
        (b'{"label": 1', "not JSON"),
        (b"[" * 50_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"label": 1}' + b" " * 65_536, "more than 65536 bytes"),
    ],
)
async def test_a_body_that_is_no_request_is_refused_as_a_whole(body: bytes, words: str) -> None:
    async with running_edge() as edge, http_client(edge) as client:
        answer = await client.post(GENERATE, content=body, headers=JSON)
        assert words in violations(answer)["request"]
        assert (await client.post(GENERATE, json={"label": 1})).status_code == 200


async def test_a_raw_image_cannot_be_a_png() -> None:
    body = {"label": 1, "format": "IMAGE_FORMAT_RAW_UINT8"}
    async with running_edge() as edge, http_client(edge) as client:
        answer = await client.post(GENERATE, json=body, headers={"accept": "image/png"})
        assert "accept header" in violations(answer)["format"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"accept": "image/webp"}, 406),
        ({"accept": "image/png;q=0, text/html"}, 406),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
async def test_other_media_types_are_refused_before_anything_is_counted(
    headers: dict[str, str], status: int
) -> None:
    async with running_edge() as edge, http_client(edge) as client:
        answer = await client.post(GENERATE, content=b'{"label": 1}', headers={**JSON, **headers})
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == status
        assert edge.metrics.value("diffusion_requests_started_total", method="HttpGenerate") == 0


async def test_an_unknown_model_is_not_found() -> None:
    async with running_edge() as edge, http_client(edge) as client:
        answer = await client.post(GENERATE, json={"label": 1, "model": "other"})
        assert answer.status_code == 404
        assert answer.json()["error"]["status"] == "NOT_FOUND"
        assert edge.finished("HttpGenerate", "NOT_FOUND") == 1


async def test_a_full_queue_is_429_with_the_time_to_come_back() -> None:
    async with (
        running_edge(max_lanes=1, max_queued_images=32) as edge,
        http_client(edge) as client,
    ):
        edge.hold()
        body = {"label": 1, "count": 32, "num_steps": 1}
        first = asyncio.create_task(client.post(GENERATE, json=body))
        await edge.until(lambda: edge.network.batches)
        answer = await client.post(GENERATE, json=body)
        edge.release()
        assert answer.status_code == 429
        error = answer.json()["error"]
        assert error["status"] == "RESOURCE_EXHAUSTED"
        [info] = error["details"]
        assert info["@type"] == "type.googleapis.com/google.rpc.RetryInfo"
        seconds = float(info["retry_delay"].removesuffix("s"))
        assert int(answer.headers["retry-after"]) == math.ceil(seconds) >= 1
        assert (await first).status_code == 200


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING, Phase.STALLED, Phase.FAILED])
async def test_a_server_that_takes_no_requests_is_503(phase: Phase) -> None:
    async with running_edge(phase=phase) as edge, http_client(edge) as client:
        answer = await client.post(GENERATE, json={"label": 1})
        assert answer.status_code == 503
        assert answer.json()["error"]["status"] == "UNAVAILABLE"
        assert phase.value in answer.json()["error"]["message"]


@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["json", "events"])
async def test_a_deadline_in_a_header_ends_the_request_and_frees_its_lanes(
    headers: dict[str, str],
) -> None:
    async with running_edge() as edge, http_client(edge) as client:
        edge.slow_down(0.005)
        answer = await client.post(
            GENERATE,
            json={"label": 1, "count": 20, "num_steps": 1000},
            headers={**headers, "request-timeout": "0.3"},
        )
        if headers:
            [(kind, found)] = events(answer.text)
            assert (answer.status_code, kind) == (200, "error")
        else:
            found = answer.json()
            assert answer.status_code == 504
        assert found["error"]["status"] == "DEADLINE_EXCEEDED"
        method = "HttpGenerateStream" if headers else "HttpGenerate"
        await left(edge, method, "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("text", ["", "-1", "1e3", "100000", "soon", "0.5s"])
async def test_a_deadline_that_is_none_is_refused(text: str) -> None:
    async with running_edge() as edge, http_client(edge) as client:
        headers = {"request-timeout": text}
        answer = await client.post(GENERATE, json={"label": 1}, headers=headers)
        assert "is not a number of seconds" in violations(answer)["request-timeout"]


@pytest.mark.parametrize("headers", [{}, EVENTS], ids=["json", "events"])
async def test_a_client_that_leaves_frees_its_lanes_and_changes_nobodys_pixels(
    headers: dict[str, str],
) -> None:
    stays = {"label": 3, "count": 4, "num_steps": 50, "seed": 1}
    leaves = {"label": 2, "count": 4, "num_steps": 1000}
    method = "HttpGenerateStream" if headers else "HttpGenerate"
    async with running_edge() as edge, http_client(edge) as client:
        alone = await edge.stub.Generate(pb.GenerateRequest(**stays))
        edge.slow_down(0.002)
        other = asyncio.create_task(client.post(GENERATE, json=leaves, headers=headers))
        await edge.until(lambda: edge.engine.statistics().lanes_active == 4)
        mine = edge.stub.Generate(pb.GenerateRequest(**stays))
        await edge.until(lambda: edge.service.exchanges.active == 2)
        other.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await other
        assert pixels(await mine) == pixels(alone)
        await left(edge, method, "CANCELLED")


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_counted_as_cancelled() -> None:
    async with running_edge() as edge, http_client(edge) as client:
        host, port = client.base_url.host, client.base_url.port
        _, writer = await asyncio.open_connection(host, port)
        writer.write(
            b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        started = "diffusion_requests_started_total"
        await edge.until(lambda: edge.metrics.value(started, method="HttpGenerate") == 1)
        writer.close()
        await left(edge, "HttpGenerate", "CANCELLED")


async def test_a_network_that_fails_is_internal_with_the_id_that_the_log_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_edge() as edge, http_client(edge) as client:
        edge.network.raise_on = {0}
        answer = await client.post(GENERATE, json={"label": 1}, headers={"x-request-id": "mine-1"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "mine-1"
    error = answer.json()["error"]
    assert error["message"] == "the server failed at this request (error id mine-1)"
    assert "device" not in answer.text
    assert any("HttpGenerate failed" in message for message in caplog.messages)


async def test_a_token_is_needed_where_tokens_are_and_the_document_says_so(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(TOKEN)
    good = {"authorization": f"Bearer {TOKEN}"}
    async with running_edge(tokens=Tokens(path)) as edge, http_client(edge) as client:
        for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": TOKEN}):
            asked = await client.post(GENERATE, json={"label": 1}, headers=headers)
            listed = await client.get("/v1/models", headers=headers)
            for answer in (asked, listed):
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["status"] == "UNAUTHENTICATED"
        answer = await client.post(GENERATE, json={"label": 1}, headers=good)
        assert answer.status_code == 200
        assert (await client.get("/v1/models", headers=good)).status_code == 200
        described = (await client.get("/openapi.json")).json()
        assert described["security"] == [{"token": []}]
        assert "fake" not in str(described)
        assert (await client.get("/livez")).status_code == 200


async def test_models_and_limits_are_those_of_grpc() -> None:
    async with running_edge() as edge, http_client(edge) as client:
        expected = await edge.stub.ListModels(pb.ListModelsRequest())
        found = (await client.get("/v1/models")).json()
        assert edge.finished("HttpListModels", "OK") == 1
    assert found["max_images_per_request"] == expected.max_images_per_request
    assert found["max_guidance_scale"] == expected.max_guidance_scale
    assert [pb.Sampler.Value(name) for name in found["samplers"]] == list(expected.samplers)
    [model] = found["models"]
    assert model["label_names"] == list(expected.models[0].label_names)
    assert model["default_sampler"] == "SAMPLER_DDPM"
    assert model["default_num_steps"] == 5


async def test_the_document_has_every_field_of_the_contract_and_the_limits_of_this_server() -> None:
    async with running_edge() as edge, http_client(edge) as client:
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    for message in (pb.GenerateRequest, pb.GenerateResponse, pb.ListModelsResponse, pb.Image):
        schema = schemas[message.DESCRIPTOR.name]
        assert set(schema["properties"]) == set(message.DESCRIPTOR.fields_by_name)
    request = schemas["GenerateRequest"]
    assert request["required"] == ["label"]
    assert request["properties"]["label"]["maximum"] == 9
    assert request["properties"]["count"]["maximum"] == 32
    assert request["properties"]["num_steps"]["maximum"] == 1000
    assert request["properties"]["guidance_scale"]["maximum"] == 20
    assert request["properties"]["model"]["enum"] == ["", "fake"]
    assert all(field["description"] for field in request["properties"].values())
    anybody = document(None, needs_token=True)["components"]["schemas"]["GenerateRequest"]
    assert "enum" not in anybody["properties"]["model"]


async def test_answers_say_that_browsers_keep_them_to_this_site() -> None:
    async with running_edge() as edge, http_client(edge) as client:
        answer: httpx.Response = await client.get("/v1/models")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
