"""Every request gets one true status, the pixels it asked for, and nothing it should not see."""

import asyncio
import random
import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import images, service
from serving.engine import Engine
from serving.health import Phase
from serving.images import decode_png
from serving.parsing import MAX_REQUEST_BYTES
from serving.receiving import GrpcCall
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.edge_harness import MODEL, Edge, details, logged_fields, pixels, running_edge, violations
from tests.fakes import assert_reference_pixels, fake_model, spec

RAW = pb.IMAGE_FORMAT_RAW_UINT8


def request(**fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(**{"label": 7, "seed": 1, "format": RAW, **fields})


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    """The error of a call that must fail, checked for what no client may see."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    assert error.code() is not grpc.StatusCode.UNKNOWN
    text = str(error.details())
    assert "Traceback" not in text
    assert "/" not in text.replace("images/s", "")
    assert ".py" not in text
    assert "\n" not in text
    return error


def error_id(error: grpc.aio.AioRpcError) -> str:
    """The id that an INTERNAL names, which is the request's."""
    named = str(error.details()).split("error id ")[1].rstrip(")")
    trailing: dict[str, Any] = dict(error.trailing_metadata())
    assert named == trailing["x-request-id"]
    return named


def failed_requests(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The ids of the requests that the log says failed."""
    return [fields["request_id"] for fields in logged_fields(caplog, "serving.exchange")]


# What is answered


async def test_generate_answers_with_the_pixels_of_the_reference_and_all_that_was_used() -> None:
    async with running_edge() as edge:
        response = await edge.stub.Generate(request(count=5, first_index=3, num_steps=4))
    assert [image.index for image in response.images] == [3, 4, 5, 6, 7]
    drawn = {
        image.index: np.frombuffer(image.data, dtype=np.uint8).reshape(1, 4, 4)
        for image in response.images
    }
    model = fake_model(MODEL.num_train_timesteps, (1, 4, 4))
    assert_reference_pixels(
        model, spec(label=7, count=5, first_index=3, seed=1, num_steps=4), drawn
    )
    for image in response.images:
        assert (image.format, image.width, image.height, image.channels) == (RAW, 4, 4, 1)
    assert response.seed == 1
    assert (response.model, response.model_version) == ("fake", "1.2.3")
    assert response.sampler == pb.SAMPLER_DDPM
    assert response.num_steps == 4
    assert response.guidance_scale == 1.0
    assert response.queue_seconds >= 0
    assert response.compute_seconds > 0


async def test_unset_fields_are_one_png_with_the_models_defaults_and_a_drawn_seed() -> None:
    async with running_edge() as edge:
        first = await edge.stub.Generate(pb.GenerateRequest(label=0))
        second = await edge.stub.Generate(pb.GenerateRequest(label=0))
        again = await edge.stub.Generate(pb.GenerateRequest(label=0, seed=first.seed))
    assert first.seed != second.seed
    assert pixels(again) == pixels(first)
    assert first.num_steps == MODEL.default_num_steps
    (image,) = first.images
    assert (image.index, image.format) == (0, pb.IMAGE_FORMAT_PNG)
    assert decode_png(image.data).shape == (4, 4, 1)


async def test_png_and_raw_hold_the_same_pixels() -> None:
    async with running_edge() as edge:
        raw = await edge.stub.Generate(request())
        png = await edge.stub.Generate(request(format=pb.IMAGE_FORMAT_PNG))
    assert decode_png(png.images[0].data).tobytes() == raw.images[0].data


async def test_only_short_answers_are_encoded_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_loop = []

    def encode(rows: images.Pixels) -> bytes:
        on_loop.append(threading.current_thread() is threading.main_thread())
        return images.encode_raw(rows)

    monkeypatch.setattr(images, "encode_png", encode)
    monkeypatch.setattr(service, "QUICK_VALUES", 2 * 4 * 4)
    async with running_edge() as edge:
        for count in (2, 3):
            png = request(count=count, format=pb.IMAGE_FORMAT_PNG)
            await edge.stub.Generate(png)
    assert on_loop == [True] * 2 + [False] * 3


async def test_a_request_is_the_same_in_parts() -> None:
    async with running_edge() as edge:
        whole = await edge.stub.Generate(request(count=10))
        head = await edge.stub.Generate(request(count=4))
        tail = await edge.stub.Generate(request(count=6, first_index=4))
    assert pixels(whole) == pixels(head) | pixels(tail)


async def test_clients_in_a_crowd_get_the_pixels_that_each_gets_alone() -> None:
    mixed = [
        request(label=1, count=3),
        request(label=2, count=20, sampler=pb.SAMPLER_DDIM, num_steps=9),
        request(label=3, sampler=pb.SAMPLER_DPMPP_2M, guidance_scale=3.0),
        request(label=4, count=7, seed=2**64 - 1, num_steps=30, guidance_scale=0.0),
    ]
    async with running_edge() as edge:
        alone = [await edge.stub.Generate(each) for each in mixed]
        crowd = await asyncio.gather(*(edge.stub.Generate(each) for each in mixed))
    assert [pixels(each) for each in crowd] == [pixels(each) for each in alone]


async def test_list_models_says_what_can_be_drawn() -> None:
    async with running_edge() as edge:
        response = await edge.stub.ListModels(pb.ListModelsRequest())
    (model,) = response.models
    assert (model.name, model.version) == ("fake", "1.2.3")
    assert tuple(model.label_names) == MODEL.label_names
    assert (model.width, model.height, model.channels) == (4, 4, 1)
    assert model.num_train_timesteps == 1000
    assert model.default_sampler == pb.SAMPLER_DDPM
    assert (model.default_num_steps, model.default_guidance_scale) == (5, 1.0)
    assert response.max_images_per_request == 32
    assert response.max_guidance_scale == 20
    assert set(response.samplers) == set(pb.Sampler.values()) - {0}


# The stream


async def collect(call: Any) -> tuple[dict[int, bytes], list[pb.Preview], pb.GenerateSummary]:
    images, previews, summary = {}, [], None
    async for event in call:
        assert summary is None, "the summary is the last message"
        match event.WhichOneof("event"):
            case "image":
                assert event.image.index not in images
                images[event.image.index] = event.image.data
            case "preview":
                assert event.preview.image.index not in images, "a preview of a finished image"
                previews.append(event.preview)
            case "summary":
                summary = event.summary
    assert summary is not None
    return images, previews, summary


async def test_the_stream_has_the_images_of_generate_and_then_the_summary() -> None:
    async with running_edge() as edge:
        whole = await edge.stub.Generate(request(count=12))
        images, previews, summary = await collect(edge.stub.GenerateStream(request(count=12)))
    assert images == pixels(whole)
    assert previews == []
    assert (summary.seed, summary.model, summary.model_version) == (1, "fake", "1.2.3")
    assert (summary.sampler, summary.num_steps) == (pb.SAMPLER_DDPM, 5)
    assert summary.compute_seconds > 0


async def test_every_message_of_a_stream_says_of_which_version_of_the_model_it_is() -> None:
    async with running_edge() as edge:
        stream = edge.stub.GenerateStream(request(count=2, num_steps=4, preview_every=2))
        assert {event.model_version async for event in stream} == {"1.2.3"}


async def test_images_come_as_they_finish() -> None:
    async with running_edge(max_lanes=1) as edge:
        edge.slow_down(0.02)
        waiting = []
        async for _ in edge.stub.GenerateStream(request(count=3, num_steps=5)):
            waiting.append(edge.engine.statistics().images_waiting)  # noqa: PERF401
    assert waiting[0] > 0, "the first image came only when all were finished"
    assert len(waiting) == 4


async def test_previews_come_after_every_kth_step_and_end_at_the_image() -> None:
    async with running_edge() as edge:
        edge.slow_down(0.1)
        images, previews, _ = await collect(
            edge.stub.GenerateStream(request(num_steps=7, preview_every=2))
        )
        same = await edge.stub.Generate(request(num_steps=7))
    assert [preview.step for preview in previews] == [2, 4, 6]
    assert {preview.image.index for preview in previews} == {0}
    assert all(len(preview.image.data) == 16 for preview in previews)
    assert images == pixels(same)


async def test_a_slow_reader_loses_previews_and_no_image() -> None:
    async with running_edge() as edge:
        asked = request(count=16, num_steps=300, preview_every=1)
        call = edge.stub.GenerateStream(asked)
        await edge.until(lambda: edge.engine.statistics().totals.images_finished >= 16)
        quick = await edge.stub.Generate(request(count=1))  # the others do not wait for it
        images, previews, _ = await collect(call)
        dropped = edge.metrics.value("diffusion_previews_dropped_total", model="fake")
    assert len(quick.images) == 1
    assert sorted(images) == list(range(16))
    assert len(previews) + dropped == 16 * 299
    assert dropped > 0


# What is refused


async def test_bad_fields_are_named_and_cost_the_engine_nothing() -> None:
    async with running_edge() as edge:
        bad = request(label=12, count=0, guidance_scale=float("nan"))
        for call in (edge.stub.Generate(bad), edge.stub.GenerateStream(bad).read()):
            error = await refusal(call)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert violations(error) == {
                "label": "12 is not in 0..9",
                "count": "0 is not in 1..32",
                "guidance_scale": "nan is not in 0..20",
            }
        assert "label: 12 is not in 0..9" in str(error.details())
        assert edge.engine.statistics().totals.steps == 0


async def test_previews_are_refused_in_generate() -> None:
    async with running_edge() as edge:
        error = await refusal(edge.stub.Generate(request(preview_every=1)))
    assert list(violations(error)) == ["preview_every"]


@pytest.mark.parametrize("method", ["Generate", "ListModels"])
@pytest.mark.parametrize("body", [b"\xff", b"\x22\x05abc"], ids=["cut off", "too short"])
async def test_undecodable_bytes_are_an_invalid_argument(method: str, body: bytes) -> None:
    async with running_edge() as edge:
        error = await refusal(edge.raw(method, body))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert list(violations(error)) == ["request"]
        assert len((await edge.stub.Generate(request())).images) == 1


async def test_a_model_name_that_is_no_text_is_an_invalid_argument() -> None:
    async with running_edge() as edge:
        error = await refusal(edge.raw("Generate", b"\x08\x01\x22\x01\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert list(violations(error)) == ["request"]


async def test_random_bytes_never_get_anything_but_an_answer() -> None:
    rng = random.Random(0)
    async with running_edge() as edge:
        for _ in range(300):
            body = rng.randbytes(rng.randrange(1, 40))
            try:
                await edge.raw("Generate", body)
            except grpc.aio.AioRpcError as error:
                assert error.code() in (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.NOT_FOUND,
                )
        await edge.until(lambda: edge.service.exchanges.active == 0)


@pytest.mark.parametrize("size_bytes", [MAX_REQUEST_BYTES + 1, 5_000_000])
async def test_a_huge_body_is_an_invalid_argument(size_bytes: int) -> None:
    async with running_edge() as edge:
        error = await refusal(edge.raw("Generate", bytes(size_bytes)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"{size_bytes} bytes" in violations(error)["request"]


async def test_an_unknown_model_is_not_found_and_those_there_are_named() -> None:
    async with running_edge() as edge:
        error = await refusal(edge.stub.Generate(request(model="nope")))
        long_name = await refusal(edge.stub.Generate(request(model="x" * 10_000)))
        known = await edge.stub.Generate(request(model="fake"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "no model 'nope' here; this server has fake"
    assert len(str(long_name.details())) < 300
    assert known.model == "fake"


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with running_edge(max_lanes=1, max_queued_images=32) as edge:
        await edge.stub.Generate(request())  # the pace is known from here on
        edge.hold()
        running = edge.stub.Generate(request(count=1))
        await edge.until(lambda: edge.engine.statistics().lanes_active)
        waiting = edge.stub.Generate(request(count=30))
        await edge.until(lambda: edge.engine.statistics().images_waiting == 30)
        begin = time.monotonic()
        error = await refusal(edge.stub.Generate(request(count=5)))
        seconds = time.monotonic() - begin
        fits = edge.stub.Generate(request(count=2))
        edge.release()
        await asyncio.gather(running, waiting, fits)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "30 images wait, the limit is 32" in str(error.details())
    delay = details(error, error_details_pb2.RetryInfo).retry_delay
    pushback = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    assert pushback > 0
    assert delay.ToMilliseconds() == pushback
    assert seconds < 1


async def test_a_request_without_a_deadline_gets_that_of_the_server() -> None:
    async with running_edge(request_timeout_seconds=1.5) as edge:
        edge.hold()
        begin = time.monotonic()
        call = edge.stub.Generate(request(num_steps=500))
        own = edge.stub.Generate(request(), timeout=30)
        await edge.until(lambda: edge.service.exchanges.active == 2)
        await asyncio.sleep(1.5)
        edge.release()
        error = await refusal(call)
        seconds = time.monotonic() - begin
        await own
        late = await refusal(edge.stub.Generate(request(count=32, num_steps=1000)))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 1.4 < seconds < 10
    assert late.code() in (
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # if the pace shows that it cannot be met
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


async def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_the_estimate() -> None:
    async with running_edge() as edge:
        edge.slow_down(0.02)
        await edge.stub.Generate(request())  # the pace is known from here on
        begin = time.monotonic()
        error = await refusal(edge.stub.Generate(request(num_steps=1000), timeout=5))
        seconds = time.monotonic() - begin
        await edge.stub.Generate(request(num_steps=10), timeout=20)
        refused = edge.metrics.value("diffusion_requests_refused_total", reason="deadline")
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the deadline cannot be met: this would take about" in str(error.details())
    delay = details(error, error_details_pb2.RetryInfo).retry_delay
    pushback = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    assert delay.ToMilliseconds() == pushback > 1000
    assert seconds < 4, "not at once"
    assert refused == 1


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING, Phase.FAILED])
async def test_a_server_that_is_not_serving_is_unavailable(phase: Phase) -> None:
    async with running_edge(phase=phase) as edge:
        error = await refusal(edge.stub.Generate(request()))
        stream = await refusal(edge.stub.GenerateStream(request()).read())
        refused = edge.metrics.value("diffusion_requests_refused_total", reason=phase.value)
    assert error.code() is stream.code() is grpc.StatusCode.UNAVAILABLE
    assert phase.value in str(error.details())
    assert details(error, error_details_pb2.ErrorInfo).reason == phase.name
    assert refused == 2


async def test_a_lame_duck_still_accepts() -> None:
    async with running_edge(phase=Phase.LAME_DUCK) as edge:
        assert len((await edge.stub.Generate(request())).images) == 1


async def test_a_dead_engine_thread_is_unavailable() -> None:
    async with running_edge() as edge:
        edge.engine_threads.stop(5)
        error = await refusal(edge.stub.Generate(request()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


# What ends early


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_deadline_ends_the_request_and_frees_its_lanes(streaming: bool) -> None:
    async with running_edge() as edge:
        edge.slow_down(0.005)
        begin = time.monotonic()
        asked = request(count=20, num_steps=1000)
        if streaming:
            error = await refusal(collect(edge.stub.GenerateStream(asked, timeout=1.5)))
        else:
            error = await refusal(edge.stub.Generate(asked, timeout=1.5))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 1.4 < time.monotonic() - begin < 5
        await edge.until(lambda: edge.engine.statistics().requests_active == 0)
        await edge.until(lambda: edge.engine.statistics().lanes_active == 0)
        method = "GenerateStream" if streaming else "Generate"
        await edge.until(lambda: edge.finished(method, "DEADLINE_EXCEEDED") == 1)


async def test_work_whose_deadline_passed_in_the_queue_never_runs() -> None:
    async with running_edge(max_lanes=1) as edge:
        edge.hold()
        running = edge.stub.Generate(request(label=1))
        await edge.until(lambda: edge.network.batches)
        error = await refusal(edge.stub.Generate(request(label=2), timeout=0.2))
        edge.release()
        await running
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert all(labels == [1] for labels in edge.network.batches)


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_client_that_leaves_frees_its_lanes_and_changes_nobodys_pixels(
    streaming: bool,
) -> None:
    async with running_edge() as edge:
        alone = await edge.stub.Generate(request(count=4, num_steps=50))
        edge.slow_down(0.002)
        stays = edge.stub.Generate(request(count=4, num_steps=50))
        asked = request(count=8, label=2, num_steps=1000)
        leaves = edge.stub.GenerateStream(asked) if streaming else edge.stub.Generate(asked)
        await edge.until(lambda: edge.service.exchanges.active == 2)
        leaves.cancel()
        assert pixels(await stays) == pixels(alone)
        await edge.until(lambda: edge.engine.statistics().requests_active == 0)
        await edge.until(lambda: edge.service.exchanges.active == 0)
        method = "GenerateStream" if streaming else "Generate"
        assert edge.finished(method, "CANCELLED") == 1


async def test_a_client_that_leaves_while_it_does_not_read_is_noticed() -> None:
    async with running_edge() as edge:
        call = edge.stub.GenerateStream(request(count=32, num_steps=1000, preview_every=1))
        await edge.until(lambda: edge.engine.statistics().totals.images_finished > 0)
        call.cancel()
        await edge.until(lambda: edge.service.exchanges.active == 0)
        await edge.until(lambda: edge.engine.statistics().requests_active == 0)
        assert edge.finished("GenerateStream", "CANCELLED") == 1


async def test_a_stream_that_nobody_reads_ends_at_the_deadline_that_the_server_gave_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GrpcCall, "seconds_left", 0.5)  # the client has set none
    async with running_edge() as edge:
        call = edge.stub.GenerateStream(request(count=32, num_steps=1000, preview_every=1))
        await edge.until(lambda: edge.finished("GenerateStream", "DEADLINE_EXCEEDED") == 1)
        assert edge.service.exchanges.active == 0
        await edge.until(lambda: edge.engine.statistics().requests_active == 0)
        error = await refusal(collect(call))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_network_that_raises_fails_its_batch_and_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_edge() as edge:
        edge.network.raise_on = {0}
        error = await refusal(edge.stub.Generate(request()))
        good = await edge.stub.Generate(request())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "fell off" not in str(error.details())
    assert error_id(error) in failed_requests(caplog)
    assert len(good.images) == 1


async def test_nan_fails_the_requests_it_is_in_and_leaves_the_others_as_they_are() -> None:
    async with running_edge() as edge:
        alone = await edge.stub.Generate(request(label=3, count=3))
        edge.network.nan_labels = {5}
        edge.hold()
        calls = [
            asyncio.ensure_future(edge.stub.Generate(request(label=label, count=3)))
            for label in (3, 5)
        ]
        await edge.until(lambda: edge.engine.statistics().images_waiting >= 0)
        await edge.until(lambda: edge.service.exchanges.active == 2)
        edge.release()
        error = await refusal(calls[1])
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "NaN" not in str(error.details())
        assert pixels(await calls[0]) == pixels(alone)


async def test_an_unforeseen_error_is_internal_with_an_id_and_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: object) -> None:
        raise LookupError("secret in /etc/secret.py")

    async with running_edge() as edge:
        monkeypatch.setattr(Engine, "reserve", explode)
        error = await refusal(edge.stub.Generate(request()))
        stream = await refusal(edge.stub.GenerateStream(request()).read())
        monkeypatch.undo()
        good = await edge.stub.Generate(request())
    for each in (error, stream):
        assert each.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(each.details())
        assert error_id(each) in failed_requests(caplog)
    assert "secret in /etc/secret.py" in caplog.text  # the operator sees it
    assert len(good.images) == 1


async def test_a_request_that_the_server_will_not_finish_is_told_so() -> None:
    async with running_edge() as edge:
        edge.slow_down(0.005)
        unary = asyncio.ensure_future(edge.stub.Generate(request(count=8, num_steps=1000)))
        stream = asyncio.ensure_future(
            edge.stub.GenerateStream(request(count=8, num_steps=1000)).read()
        )
        await edge.until(lambda: edge.service.exchanges.active == 2)
        edge.service.exchanges.abandon()
        for call in (unary, stream):
            error = await refusal(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        await edge.until(lambda: edge.engine.statistics().requests_active == 0)
        await asyncio.wait_for(edge.service.exchanges.wait_idle(), 1)


# The ledger


class Ledger:
    """Requests of every kind, each with its final status as the client sees it."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.sent = 0
        self.statuses: list[str] = []
        self.limit = asyncio.Semaphore(12)

    def all_arrived(self) -> bool:
        value = self.edge.metrics.value
        return value("diffusion_requests_started_total", method="Generate") == self.sent

    async def ask(self, kind: str, label: int, count: int) -> None:
        fields: dict[str, object] = {"label": label, "count": count}
        timeout = 30.0
        if kind == "invalid":
            fields["count"] = 0
        elif kind == "unknown":
            fields["model"] = "nope"
        elif kind in ("deadline", "cancelled"):
            fields["num_steps"] = 1000
            timeout = 1.0 if kind == "deadline" else 30.0
        async with self.limit:
            self.sent += 1
            call = self.edge.stub.Generate(request(**fields), timeout=timeout)
            if kind == "cancelled":
                # What never reaches the server cannot be in its counters.
                await self.edge.until(self.all_arrived)
                call.cancel()
            try:
                await call
            except asyncio.CancelledError:
                self.statuses.append("CANCELLED")
            except grpc.aio.AioRpcError as error:
                self.statuses.append(error.code().name)
            else:
                self.statuses.append(f"OK {label} {count}")


async def test_the_counters_equal_the_clients_ledger() -> None:
    rng = random.Random(4)
    kinds = ["good", "good", "invalid", "unknown", "deadline", "cancelled"] * 10
    async with running_edge(max_queued_images=4096) as edge:
        edge.slow_down(0.002)
        ledger = Ledger(edge)
        await asyncio.gather(
            *(ledger.ask(kind, rng.randrange(10), rng.randrange(1, 5)) for kind in kinds)
        )
        await edge.until(lambda: edge.service.exchanges.active == 0)
        await edge.until(lambda: edge.engine.statistics().requests_active == 0)
        value = edge.metrics.value
        codes = [status.split()[0] for status in ledger.statuses]
        always = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "CANCELLED"}
        # A deadline that cannot be met at the measured pace is refused.
        late = {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
        assert always < set(codes) <= always | late
        assert len(codes) == len(kinds) == ledger.sent
        assert ledger.all_arrived()
        for code in set(codes):
            assert edge.finished("Generate", code) == codes.count(code), code
        refused = codes.count("INVALID_ARGUMENT")
        assert value("diffusion_requests_refused_total", reason="invalid_argument") == refused
        unknown = codes.count("NOT_FOUND")
        assert value("diffusion_requests_refused_total", reason="unknown_model") == unknown
        unmeetable = codes.count("RESOURCE_EXHAUSTED")
        assert value("diffusion_requests_refused_total", reason="deadline") == unmeetable
        assert value("diffusion_queue_seconds_count", model="fake") == codes.count("OK")
        for label, name in enumerate(MODEL.label_names):
            delivered = sum(
                int(status.split()[2])
                for status in ledger.statuses
                if status.startswith(f"OK {label} ")
            )
            assert value("diffusion_images_total", model="fake", label=name) == delivered


async def test_streamed_images_are_counted_one_by_one() -> None:
    async with running_edge() as edge:
        await collect(edge.stub.GenerateStream(request(label=4, count=9)))
        assert edge.metrics.value("diffusion_images_total", model="fake", label="label 4") == 9
        await edge.until(lambda: edge.finished("GenerateStream", "OK") == 1)


# Any request at all

_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "label": st.integers(-3, 12),
        "count": st.integers(-2, 40),
        "seed": st.integers(0, 2**64 - 1),
        "model": st.sampled_from(["", "fake", "nope"]) | st.text(max_size=5),
        "sampler": st.integers(-1, 5),
        "num_steps": st.integers(-1, 12) | st.integers(995, 1005),
        "guidance_scale": st.floats(width=32),
        "format": st.integers(-1, 4),
        "first_index": st.integers(-1, 3) | st.integers(2**31 - 40, 2**31 - 1),
        "preview_every": st.integers(-1, 2),
    },
)


@settings(max_examples=20)
@given(st.lists(_FIELDS, min_size=10, max_size=10))
async def test_any_request_gets_its_images_or_the_names_of_its_bad_fields(
    requests: list[dict[str, object]],
) -> None:
    async with running_edge() as edge:
        for fields in requests:
            asked = pb.GenerateRequest(**fields)
            try:
                response = await edge.stub.Generate(asked)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    assert asked.model not in ("", "fake")
                    continue
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert violations(error)
                continue
            count = asked.count if asked.HasField("count") else 1
            assert [image.index for image in response.images] == list(
                range(asked.first_index, asked.first_index + count)
            )
