"""Client and AsyncClient against servers that refuse, break, hang and go away.

Each test runs for both clients.
"""

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from serving import refusal
from serving.client import (
    AsyncClient,
    Client,
    ClientError,
    DeadlineExceededError,
    InternalError,
    ModelChangedError,
    ResourceExhaustedError,
    RetryPolicy,
    Tls,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.client_harness import (
    BlockingClient,
    Certificates,
    Context,
    ScriptedServer,
    accept,
    image,
    nobody_listening,
    refuse,
    stream_of,
)

MakeClient = Callable[..., Any]

STARTING = refusal.unavailable("starting")
QUICK = RetryPolicy(max_attempts=5, initial_backoff_seconds=0.01, max_backoff_seconds=0.05)


@pytest.fixture(params=[Client, BlockingClient], ids=["sync", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    def make(target: str, **settings: Any) -> Any:
        return request.param(target, **{"timeout_seconds": 20, "retry": QUICK, **settings})

    return make


@contextlib.contextmanager
def scripted(*answers: Any, streams: tuple[Any, ...] = ()) -> Iterator[ScriptedServer]:
    with ScriptedServer(list(answers), list(streams)).running() as server:
        yield server


# Refusals


def test_a_busy_server_is_asked_again_when_it_said(make_client: MakeClient) -> None:
    busy = refuse(refusal.queue_full(9, 9, 0.6))
    with scripted(busy, accept) as server, make_client(server.target) as client:
        assert len(client.generate(0, 3).images) == 3
    first, second = server.asked_seconds
    assert 0.59 < second - first < 5


def test_pushback_alone_says_when_to_come_back(make_client: MakeClient) -> None:
    busy = refusal.RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", retry_after_seconds=0.4)
    with scripted(refuse(busy), accept) as server, make_client(server.target) as client:
        client.generate(0)
    first, second = server.asked_seconds
    assert second - first > 0.39


def test_a_refusal_without_a_time_to_come_back_is_final(make_client: MakeClient) -> None:
    too_large = refusal.RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "message too large")
    with (
        scripted(refuse(too_large), accept) as server,
        make_client(server.target) as client,
        pytest.raises(ResourceExhaustedError, match="message too large"),
    ):
        client.generate(0)
    assert len(server.requests) == 1


def test_every_attempt_carries_the_seed_of_the_first(make_client: MakeClient) -> None:
    with (
        scripted(refuse(STARTING), refuse(STARTING), accept) as server,
        make_client(server.target) as client,
    ):
        made = client.generate(0, 4)
    assert len(server.requests) == 3
    assert {request.seed for request in server.requests} == {made.seed}
    assert [each.pixels.tobytes() for each in made.images] == [
        image(made.seed, index).data for index in range(4)
    ]


def test_attempts_end_and_the_refusal_says_when_to_come_back(make_client: MakeClient) -> None:
    with (
        scripted(refuse(refusal.queue_full(9, 9, 0.05))) as server,
        make_client(server.target) as client,
        pytest.raises(ResourceExhaustedError, match="the queue is full") as caught,
    ):
        client.generate(0)
    assert caught.value.retry_after_seconds == 0.05
    assert len(server.requests) == 5


def test_a_wait_longer_than_the_call_ends_it_at_once(make_client: MakeClient) -> None:
    begin = time.monotonic()
    with (
        scripted(refuse(refusal.queue_full(9, 9, 30.0)), accept) as server,
        make_client(server.target) as client,
        pytest.raises(ResourceExhaustedError),
    ):
        client.generate(0)
    assert time.monotonic() - begin < 5


def test_what_is_wrong_for_good_is_not_tried_again(make_client: MakeClient) -> None:
    with (
        scripted(refuse(refusal.internal("abc")), accept) as server,
        make_client(server.target) as client,
        pytest.raises(InternalError, match="error id abc"),
    ):
        client.generate(0)
    assert len(server.requests) == 1


def test_retries_can_be_turned_off(make_client: MakeClient) -> None:
    with (
        scripted(refuse(refusal.unavailable("draining")), accept) as server,
        make_client(server.target, retry=None) as client,
        pytest.raises(UnavailableError, match="this server is draining"),
    ):
        client.generate(0)
    assert len(server.requests) == 1


def test_an_error_with_details_of_an_unknown_kind_is_still_an_error(
    make_client: MakeClient,
) -> None:
    error = refusal.RefusedError(
        grpc.StatusCode.INTERNAL, "odd", details=[error_details_pb2.Help()]
    )
    damaged = refusal.RefusedError(grpc.StatusCode.INTERNAL, "damaged")
    with (
        scripted(refuse(error), refuse(damaged, ("grpc-status-details-bin", b"\xff"))) as server,
        make_client(server.target) as client,
    ):
        for message in ("odd", "damaged"):
            with pytest.raises(InternalError, match=message):
                client.generate(0)


def test_an_error_names_the_request_as_the_servers_log_does(make_client: MakeClient) -> None:
    error = refusal.RefusedError(grpc.StatusCode.INTERNAL, "odd")
    with (
        scripted(refuse(error, ("x-request-id", "abc123"))) as server,
        make_client(server.target) as client,
        pytest.raises(InternalError) as caught,
    ):
        client.generate(0)
    assert caught.value.request_id == "abc123"


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_an_error_that_is_let_go_of_keeps_nothing_alive() -> None:
    """A cycle would keep the call, and the connection of a closed client, for the collector."""
    busy = refuse(refusal.queue_full(9, 9, 3600.0))
    errors: list[weakref.ref[ClientError]] = []
    with scripted(busy, busy, streams=(busy, busy)) as server:
        with Client(server.target) as client:
            for call in (client.generate, lambda label: list(client.stream(label))):
                try:
                    call(0)
                except ClientError as error:
                    errors.append(weakref.ref(error))
        async with AsyncClient(server.target) as async_client:
            try:
                await async_client.generate(0)
            except ClientError as error:
                errors.append(weakref.ref(error))
            try:
                await anext(async_client.stream(0))
            except ClientError as error:
                errors.append(weakref.ref(error))
    assert [error() for error in errors] == [None] * 4


def test_another_kind_of_server_is_recognised(make_client: MakeClient) -> None:
    with (
        scripted(accept) as server,
        make_client(server.target) as client,
        pytest.raises(UnimplementedError, match="not a simple-diffusion server"),
    ):
        client.models()


# Time


def test_a_server_that_hangs_costs_the_deadline_and_not_more(make_client: MakeClient) -> None:
    release = threading.Event()

    def hang(request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        release.wait(20)
        return accept(request, context)

    with scripted(hang, streams=(hang,)) as server, make_client(server.target) as client:
        for call in (client.generate, lambda *_, **limit: list(client.stream(0, **limit))):
            begin = time.monotonic()
            with pytest.raises(DeadlineExceededError, match="did not come in time") as caught:
                call(0, timeout_seconds=0.3)
            assert 0.25 < time.monotonic() - begin < 5
            assert caught.value.code == "DEADLINE_EXCEEDED"
        release.set()


def test_attempts_share_one_deadline(make_client: MakeClient) -> None:
    endless = RetryPolicy(10_000, 0.01, 0.05)
    begin = time.monotonic()
    with (
        scripted(refuse(STARTING)) as server,
        make_client(server.target, retry=endless, timeout_seconds=2.0) as client,
        pytest.raises(ClientError) as caught,
    ):
        client.generate(0)
    assert time.monotonic() - begin < 10
    assert caught.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert len(server.requests) > 5


def test_waiting_for_ready_outlasts_a_server_that_is_not_there_yet(
    make_client: MakeClient,
) -> None:
    with nobody_listening() as target:
        pass  # the port is free again
    server = ScriptedServer([accept])

    def start() -> None:
        with server.running(address=target):
            stop.wait(20)

    stop = threading.Event()
    timer = threading.Timer(0.5, start)
    timer.start()
    with make_client(target, wait_for_ready=True) as client:
        assert len(client.generate(0, 2).images) == 2
    stop.set()
    timer.join()


def test_wait_ready_waits_for_serving(make_client: MakeClient) -> None:
    with scripted(accept) as server, make_client(server.target) as client:
        server.serving = False
        with pytest.raises(UnavailableError, match="is not ready"):
            client.wait_ready(0.3)
        assert client.health() == "NOT_SERVING"
        timer = threading.Timer(0.3, lambda: setattr(server, "serving", True))
        timer.start()
        client.wait_ready(10)
        timer.join()


# Streams that break


def test_a_broken_stream_is_taken_up_where_it_broke(make_client: MakeClient) -> None:
    broken = (stream_of(0, 1, 3, then=STARTING), stream_of(0, then=STARTING), stream_of())
    with (
        scripted(streams=broken) as server,
        make_client(server.target) as client,
        client.stream(7, 6, first_index=10) as stream,
    ):
        events = list(stream)
    assert sorted(event.index for event in events) == [10, 11, 12, 13, 14, 15]
    assert all(event.pixels.tobytes() == image(stream.seed, event.index).data for event in events)
    assert [(asked.first_index, asked.count) for asked in server.requests] == [
        (10, 6), (12, 4), (14, 2),
    ]  # fmt: skip
    assert {asked.seed for asked in server.requests} == {stream.seed}
    assert stream.summary is not None


def test_a_stream_that_brings_nothing_ends_like_any_call(make_client: MakeClient) -> None:
    with (
        scripted(streams=(stream_of(0, then=STARTING), refuse(STARTING))) as server,
        make_client(server.target) as client,
    ):
        stream = client.stream(0, 3)
        assert next(stream).index == 0
        with pytest.raises(UnavailableError, match="this server is starting"):
            next(stream)
        assert list(stream) == []
    assert len(server.requests) == 5, "the one that brought an image is the first of five"


def test_a_stream_that_breaks_after_its_summary_has_ended_well(make_client: MakeClient) -> None:
    def late(request: pb.GenerateRequest, context: Context) -> Any:
        yield from stream_of()(request, context)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")

    with scripted(streams=(late,)) as server, make_client(server.target) as client:
        stream = client.stream(0, 3)
        assert len(list(stream)) == 3
        assert stream.summary is not None
    assert len(server.requests) == 1


def test_a_stream_that_ends_well_without_all_images_is_an_error(make_client: MakeClient) -> None:
    with scripted(streams=(stream_of(0, 2),)) as server, make_client(server.target) as client:
        stream = client.stream(0, 3)
        with pytest.raises(InternalError, match="ended without all images"):
            list(stream)
        assert list(stream) == []


def test_images_of_two_versions_of_a_model_are_never_one_stream(make_client: MakeClient) -> None:
    streams = (stream_of(0, then=STARTING), stream_of(model_version="1.1.0"))
    with scripted(streams=streams) as server, make_client(server.target) as client:
        stream = client.stream(0, 3)
        assert next(stream).index == 0
        with pytest.raises(
            ModelChangedError, match=r"from version 1\.0\.0 of the model to 1\.1\.0"
        ):
            next(stream)
        assert list(stream) == []


def test_leaving_a_stream_tells_the_server(make_client: MakeClient) -> None:
    with scripted(streams=(endless_previews,)) as server, make_client(server.target) as client:
        with client.stream(0, 3, preview_every=1) as stream:
            next(stream)
        assert server.ended.wait(10)


def endless_previews(_: pb.GenerateRequest, context: Context) -> Iterator[Any]:
    while context.is_active():
        yield pb.GenerateStreamResponse(preview=pb.Preview(image=image(0, 0), step=1))
        time.sleep(0.01)


async def test_a_cancelled_task_ends_its_stream() -> None:
    async def read() -> None:
        async with AsyncClient(server.target) as client:
            async for _ in client.stream(0, 3, preview_every=1):
                reading.set()

    reading = asyncio.Event()
    with scripted(streams=(endless_previews,)) as server:
        task = asyncio.create_task(read())
        await reading.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.ended.wait, 10)


# Several servers


def test_several_servers_take_turns(make_client: MakeClient) -> None:
    with scripted(accept) as one, scripted(accept) as other:
        with make_client(f"{one.target},{other.target}") as client:
            for _ in range(6):
                client.generate(0)
        assert [len(one.requests), len(other.requests)] == [3, 3]


def test_a_server_that_is_away_costs_nothing_but_its_turn(make_client: MakeClient) -> None:
    slow = RetryPolicy(max_attempts=2, initial_backoff_seconds=30, max_backoff_seconds=30)
    with nobody_listening() as away, scripted(accept, streams=(stream_of(),)) as server:
        begin = time.monotonic()
        with make_client(f"{away},{server.target}", retry=slow) as client:
            for _ in range(4):
                assert len(client.generate(0).images) == 1
            assert len(list(client.stream(0, 3))) == 3
            assert client.health() == "SERVING"
        assert time.monotonic() - begin < 10


def test_a_stream_moves_to_another_server(make_client: MakeClient) -> None:
    with (
        scripted(streams=(stream_of(0, 1, then=STARTING),)) as one,
        scripted(streams=(stream_of(),)) as other,
        make_client(f"{one.target},{other.target}") as client,
    ):
        stream = client.stream(0, 5)
        assert sorted(event.index for event in stream) == [0, 1, 2, 3, 4]
    assert [(asked.first_index, asked.count) for asked in other.requests] == [(2, 3)]


# TLS and tokens


def test_a_token_goes_with_every_call_and_a_wrong_one_is_said(make_client: MakeClient) -> None:
    unauthenticated = refusal.RefusedError(grpc.StatusCode.UNAUTHENTICATED, "the token is wrong")
    with (
        scripted(accept, refuse(unauthenticated), streams=(stream_of(),)) as server,
        make_client(server.target, token="s3cret") as client,
    ):
        client.generate(0)
        with pytest.raises(UnauthenticatedError, match="the token is wrong") as caught:
            client.generate(0)
        list(client.stream(0))
        assert "s3cret" not in str(caught.value)
    assert {sent["authorization"] for sent in server.metadata} == {"Bearer s3cret"}


def test_tls_with_the_certificates_of_both_sides(make_client: MakeClient, tmp_path: Path) -> None:
    ours, theirs = (Certificates(tmp_path / name) for name in ("client", "server"))
    credentials = theirs.credentials(clients=ours)
    with ScriptedServer([accept]).running(credentials=credentials) as server:
        known = Tls(theirs.ca_file, ours.cert_file, ours.key_file)
        with make_client(server.target, tls=known) as client:
            assert len(client.generate(0, 2).images) == 2
            assert client.health() == "SERVING"
        for wrong, said in (
            (Tls(theirs.ca_file), "closed the connection.*certificate"),
            (Tls(ours.ca_file), "no TLS connection"),
            (None, "closed the connection.*TLS"),
        ):
            with (
                make_client(server.target, tls=wrong, retry=None) as client,
                pytest.raises(UnavailableError, match=said),
            ):
                client.generate(0, timeout_seconds=5)
    assert len(server.requests) == 1


def test_a_certificate_that_is_not_there_is_an_error_at_once(
    make_client: MakeClient, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        make_client("localhost:1", tls=Tls(tmp_path / "nothing.pem"))
