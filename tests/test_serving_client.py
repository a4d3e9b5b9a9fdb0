"""Client and AsyncClient against a real server: what they return is what the server drew.

Each test runs for both clients.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import (
    AsyncClient,
    AsyncImageStream,
    CallCancelledError,
    Client,
    ClientError,
    GeneratedImage,
    Generation,
    ImageStream,
    InvalidArgumentError,
    NotFoundError,
    Preview,
    Tls,
    UnauthenticatedError,
    UnavailableError,
    errors,
)
from tests.client_harness import BlockingClient, Certificates, nobody_listening
from tests.fakes import write_tiny_bundle
from tests.server_process import ServerProcess, running_server

MakeClient = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = write_tiny_bundle(
        tmp_path_factory.mktemp("bundles") / "tiny", num_train_timesteps=1000
    )
    with running_server(bundle, flags=("--max-images-per-request", "50")) as running:
        yield running


@pytest.fixture(params=[Client, BlockingClient], ids=["sync", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    made: MakeClient = request.param
    return made


@pytest.fixture
def client(server: ServerProcess, make_client: MakeClient) -> Iterator[Any]:
    with make_client(server.target, timeout_seconds=30) as connected:
        yield connected


def pixels(generation: Generation) -> list[bytes]:
    return [image.pixels.tobytes() for image in generation.images]


# generate


def test_a_generation_holds_the_images_and_how_they_were_made(client: Any) -> None:
    made = client.generate(
        1, 6, seed=5, sampler="ddim", num_steps=7, guidance_scale=1.5, first_index=2, model="tiny"
    )
    assert [image.index for image in made.images] == [2, 3, 4, 5, 6, 7]
    assert all(image.pixels.shape == (4, 4, 1) for image in made.images)
    assert all(image.pixels.dtype == np.uint8 for image in made.images)
    assert (made.label, made.seed, made.model, made.model_version) == (1, 5, "tiny", "1.0.0")
    assert (made.sampler, made.num_steps, made.guidance_scale) == ("ddim", 7, 1.5)
    assert made.queue_seconds >= 0
    assert made.compute_seconds > 0


def test_a_drawn_seed_draws_the_same_again(client: Any) -> None:
    drawn = client.generate(0, 3)
    assert pixels(client.generate(0, 3, seed=drawn.seed)) == pixels(drawn)
    assert client.generate(0).seed != drawn.seed


def test_violations_are_listed(client: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        client.generate(99, 51)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.violations == (
        ("label", "99 is not in 0..2"),
        ("count", "51 is not in 1..50"),
    )
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_not_found(client: Any) -> None:
    with pytest.raises(NotFoundError, match="this server has tiny"):
        client.generate(0, model="other")


def test_a_value_that_fits_no_message_is_refused_before_anything_is_sent(client: Any) -> None:
    with pytest.raises(ValueError, match="ddpm, ddim, dpmpp_2m"):
        client.generate(0, sampler="euler")
    with pytest.raises(ValueError, match="seed must be in"):
        client.stream(0, seed=-1)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_no_time_is_refused(server: ServerProcess, make_client: Any, seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout_seconds must be above 0"):
        make_client(server.target, timeout_seconds=seconds)


# stream


def test_a_stream_draws_what_generate_draws_and_says_how(client: Any) -> None:
    options: dict[str, Any] = {"seed": 11, "sampler": "dpmpp_2m", "num_steps": 6, "first_index": 3}
    whole = client.generate(2, 9, **options)
    with client.stream(2, 9, **options) as stream:
        assert stream.seed == 11
        images = sorted(stream, key=lambda image: image.index)
    assert all(isinstance(image, GeneratedImage) for image in images)
    assert [image.index for image in images] == list(range(3, 12))
    assert [image.pixels.tobytes() for image in images] == pixels(whole)
    summary = stream.summary
    assert (summary.label, summary.seed, summary.model) == (2, 11, "tiny")
    assert (summary.sampler, summary.num_steps) == ("dpmpp_2m", 6)


def test_previews_come_before_their_image(client: Any) -> None:
    events = list(client.stream(1, 2, seed=3, num_steps=40, preview_every=10))
    seen: set[int] = set()
    for event in events:
        assert event.index not in seen, "a preview of a finished image"
        assert event.pixels.shape == (4, 4, 1)
        if isinstance(event, Preview):
            assert event.step in (10, 20, 30)
        else:
            seen.add(event.index)
    assert seen == {0, 1}
    assert any(isinstance(event, Preview) for event in events)


def test_a_stream_that_is_left_early_stops_the_work(server: ServerProcess, client: Any) -> None:
    cancelled = server.finished("GenerateStream", "CANCELLED")
    with client.stream(0, 50, num_steps=1000, preview_every=1) as stream:
        next(stream)
    assert list(stream) == []
    assert stream.summary is None
    deadline_seconds = time.monotonic() + 10
    while server.finished("GenerateStream", "CANCELLED") == cancelled:
        assert time.monotonic() < deadline_seconds
        time.sleep(0.01)


def test_a_stream_that_is_refused_raises_when_it_is_read_and_is_over(client: Any) -> None:
    stream = client.stream(77, 3)
    with pytest.raises(InvalidArgumentError, match=r"label: 77 is not in 0\.\.2"):
        next(stream)
    assert list(stream) == []


# models, health, wait_ready


def test_models_are_typed_values(client: Any) -> None:
    catalog = client.models()
    [model] = catalog.models
    assert (model.name, model.version, model.label_names) == (
        "tiny", "1.0.0", ("zero", "one", "two"),
    )  # fmt: skip
    assert (model.width, model.height, model.channels) == (4, 4, 1)
    assert (model.default_sampler, model.default_num_steps) == ("ddpm", 4)
    assert model.num_train_timesteps == 1000
    assert model.default_guidance_scale == 1.0
    assert catalog.max_images_per_request == 50
    assert catalog.max_guidance_scale == 20.0
    assert set(catalog.samplers) == {"ddpm", "ddim", "dpmpp_2m", "ddim_stochastic"}


def test_health_is_what_the_server_says(client: Any) -> None:
    assert client.health() == client.health("") == "SERVING"
    with pytest.raises(NotFoundError, match="no service 'nobody'"):
        client.health("nobody")
    client.wait_ready(5)


def test_nobody_there_is_said_with_what_to_do(make_client: MakeClient) -> None:
    with nobody_listening() as target:
        port = target.rpartition(":")[2]
        with make_client(target) as client, pytest.raises(UnavailableError) as caught:
            client.generate(0)
        assert str(caught.value) == (
            f"no server answers at {target}; start one with: python -m serving --port {port}"
        )
        assert caught.value.code == "UNAVAILABLE"


def test_waiting_for_a_server_that_never_comes_ends(make_client: MakeClient) -> None:
    begin = time.monotonic()
    with (
        nobody_listening() as target,
        make_client(target) as client,
        pytest.raises(UnavailableError, match="no server answers"),
    ):
        client.wait_ready(0.5)
    assert time.monotonic() - begin < 10


# TLS and tokens


def test_tls_a_certificate_of_its_own_and_a_token_are_what_a_server_asks_for(
    make_client: MakeClient, tmp_path: Path
) -> None:
    ours, theirs = (Certificates(tmp_path / name) for name in ("client", "server"))
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-many-letters\n")
    flags = (
        "--tls-cert", str(theirs.cert_file), "--tls-key", str(theirs.key_file),
        "--tls-client-ca", str(ours.ca_file), "--auth-tokens-file", str(tokens),
    )  # fmt: skip
    tls = Tls(theirs.ca_file, ours.cert_file, ours.key_file)
    with running_server(write_tiny_bundle(tmp_path / "tiny"), flags=flags) as server:
        with make_client(server.target, tls=tls, token="a-token-of-many-letters") as client:
            assert len(client.generate(0, 2).images) == len(list(client.stream(0, 2))) == 2
            assert client.models().models[0].name == "tiny"
            assert client.health() == "SERVING"
        with (
            make_client(server.target, tls=tls) as client,
            pytest.raises(UnauthenticatedError) as caught,
        ):
            client.generate(0)
        assert caught.value.request_id


# Closing


def test_a_closed_client_says_so(server: ServerProcess) -> None:
    client = Client(server.target)
    client.close()
    with pytest.raises(CallCancelledError, match="the client was closed"):
        client.generate(0)
    with pytest.raises(CallCancelledError, match="the client was closed"):
        next(client.stream(0))


def test_closing_ends_what_runs(server: ServerProcess) -> None:
    client = Client(server.target)
    with ThreadPoolExecutor(2) as threads:
        events = client.stream(0, 50, num_steps=1000, preview_every=1)
        next(events)
        running = threads.submit(client.generate, 0, 50, num_steps=1000)
        client.close()
        with pytest.raises(CallCancelledError):
            list(events)
        with pytest.raises(CallCancelledError):
            running.result(20)


async def test_closing_ends_what_runs_in_asyncio_without_cancelling_the_task(
    server: ServerProcess,
) -> None:
    client = AsyncClient(server.target)
    events = client.stream(0, 50, num_steps=1000, preview_every=1)
    await anext(events)
    running = asyncio.create_task(client.generate(0, 50, num_steps=1000))
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(CallCancelledError):
        [event async for event in events]
    with pytest.raises(CallCancelledError):
        await running
    with pytest.raises(CallCancelledError, match="the client was closed"):
        await client.models()


async def test_a_cancelled_task_is_cancelled_and_its_call_too(server: ServerProcess) -> None:
    async with AsyncClient(server.target) as client:
        server.until_idle()
        cancelled = server.finished("Generate", "CANCELLED")
        running = asyncio.create_task(client.generate(0, 50, num_steps=1000))
        while server.metric("diffusion_lanes_in_use", model="tiny") == 0:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with asyncio.timeout(10):
            while server.finished("Generate", "CANCELLED") == cancelled:
                await asyncio.sleep(0.01)


async def test_many_calls_run_at_once_in_one_loop(server: ServerProcess) -> None:
    async with AsyncClient(server.target) as client:
        made = await asyncio.gather(*(client.generate(1, 2, seed=seed) for seed in range(20)))
    assert [each.seed for each in made] == list(range(20))


def test_threads_share_a_client(server: ServerProcess) -> None:
    with Client(server.target) as client, ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda seed: client.generate(1, 2, seed=seed), range(40)))
    assert [each.seed for each in made] == list(range(40))


# One library


@pytest.mark.parametrize(
    ("one", "other", "renamed"),
    [
        (Client, AsyncClient, {"close": "aclose"}),
        (ImageStream, AsyncImageStream, {"close": "aclose"}),
    ],
)
def test_both_clients_have_the_same_methods_with_the_same_arguments(
    one: type, other: type, renamed: dict[str, str]
) -> None:
    def signatures(kind: type) -> dict[str, list[str]]:
        found = {}
        for name, member in inspect.getmembers(kind):
            if not name.startswith("_") or name == "__init__":
                found[name] = list(inspect.signature(member).parameters) if callable(member) else []
        return found

    expected = {renamed.get(name, name): value for name, value in signatures(one).items()}
    assert signatures(other) == expected


def test_every_error_is_a_client_error_with_the_code_of_its_status() -> None:
    class Failed(grpc.RpcError):
        def __init__(self, code: grpc.StatusCode) -> None:
            self.status = code

        def code(self) -> grpc.StatusCode:
            return self.status

        def details(self) -> str:
            return "why"

        def trailing_metadata(self) -> tuple[()]:
            return ()

    for status in grpc.StatusCode:
        if status is grpc.StatusCode.OK:
            continue
        made = errors.from_rpc_error(Failed(status), "host:1")
        assert isinstance(made, ClientError)
        assert made.code == status.name
        words = "".join(word.title() for word in status.name.split("_"))
        expected = {"Cancelled": "CallCancelledError"}.get(words, f"{words}Error")
        assert type(made).__name__ == (expected if hasattr(errors, expected) else "ClientError")
