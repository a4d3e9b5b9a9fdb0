"""Promise: metrics tell the truth: after a scripted run, every counter equals the ledger."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from diffusion.samplers import network_rows
from serving.client import AsyncClient
from serving.metric_families import FAMILIES
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests import faulty_server
from tests.fault_figures import Record
from tests.ledger import LONG, SERVICE, Ledger
from tests.raw_http2 import GENERATE_STREAM, RawConnection
from tests.server_process import (
    MNIST,
    Samples,
    ServerProcess,
    counters,
    running_server,
    sample,
    total,
)

SCRIPT: list[dict[str, Any]] = [
    {"label": 0, "count": 1, "sampler": "ddpm", "num_steps": 3, "guidance_scale": 1.0},
    {"label": 9, "count": 5, "sampler": "ddim", "num_steps": 4, "guidance_scale": 2.0},
    {"label": 9, "count": 2, "sampler": "dpmpp_2m", "num_steps": 2, "guidance_scale": 0.0},
    {"label": 5, "count": 70, "sampler": "ddpm", "num_steps": 1, "guidance_scale": 1.0},
    {"label": 3, "count": 3, "sampler": "ddim_stochastic", "num_steps": 8, "guidance_scale": 1.5},
]
REFUSED: list[dict[str, Any]] = [
    {"label": 10},
    {"count": 0},
    {"num_steps": 1001},
    {"model": "other"},
]
TOKEN = "a-token-of-this-test"


def rows(options: dict[str, Any]) -> int:
    per_image = network_rows(options["sampler"], options["num_steps"], options["guidance_scale"])
    return int(options["count"] * per_image)


def of_kind(kind: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return sample("diffusion_rows_total", model="mnist", kind=kind)


async def test_every_counter_equals_the_ledger(mnist_server: ServerProcess, figure: Record) -> None:
    ledger = Ledger()
    before = await asyncio.to_thread(mnist_server.until_idle)
    async with AsyncClient(mnist_server.target, retry=None) as client:
        for options in SCRIPT:
            await ledger.generate(client, **options)
            await ledger.stream(client, **options)
        for refused in REFUSED:
            await ledger.generate(client, **{"label": 1, "count": 1, **refused})
        await client.models()
    after = await asyncio.to_thread(mnist_server.until_idle)

    work = 2 * sum(rows(options) for options in SCRIPT)
    models = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "ListModels"}
    expected: Samples = {
        **ledger.as_counters(),
        **ledger.as_grpc_counters(),
        of_kind("useful"): float(work),
        sample("diffusion_requests_refused_total", reason="invalid_argument"): 3.0,
        sample("diffusion_requests_refused_total", reason="unknown_model"): 1.0,
        sample("diffusion_requests_started_total", method="ListModels"): 1.0,
        sample("diffusion_requests_finished_total", method="ListModels", code="OK"): 1.0,
        sample("grpc_server_started_total", **models): 1.0,
        sample("grpc_server_msg_received_total", **models): 1.0,
        sample("grpc_server_msg_sent_total", **models): 1.0,
        sample("grpc_server_handled_total", **models, grpc_code="OK"): 1.0,
    }
    assert counters(before, after) == expected

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    drawn, requests = len(SCRIPT), 2 * len(SCRIPT) + len(REFUSED) + 1
    assert grown("diffusion_engine_step_rows_sum", model="mnist") == work
    assert grown("diffusion_queue_seconds_count", model="mnist") == 2 * drawn
    assert grown("diffusion_compute_seconds_count", model="mnist") == 2 * drawn
    for method in ("Generate", "GenerateStream"):
        first = "diffusion_time_to_first_image_seconds_count"
        assert grown(first, model="mnist", method=method) == drawn
    assert grown("diffusion_request_seconds_count") == requests
    assert grown("grpc_server_handling_seconds_count", grpc_service=SERVICE) == requests
    figure("counters equal to the ledger", f"{len(expected)} of {len(expected)}", "all")
    figure("network rows counted, of the script's", f"{work} of {work}", "all")


async def test_requests_over_http_are_counted_too_and_not_as_calls_of_grpc(
    mnist_server: ServerProcess,
) -> None:
    before = await asyncio.to_thread(mnist_server.until_idle)
    url = f"http://127.0.0.1:{mnist_server.http_port}/v1"
    async with httpx.AsyncClient(timeout=60) as client:
        for options in SCRIPT:
            sampler = f"SAMPLER_{options['sampler'].upper()}"
            answer = await client.post(f"{url}/generate", json={**options, "sampler": sampler})
            assert len(answer.json()["images"]) == options["count"]
        for refused in REFUSED:
            answer = await client.post(f"{url}/generate", json={"label": 1, **refused})
            assert answer.status_code in {400, 404}
        assert (await client.get(f"{url}/models")).status_code == 200
    after = await asyncio.to_thread(mnist_server.until_idle)
    images = Counter[str]()
    for options in SCRIPT:
        images[str(options["label"])] += options["count"]
    ended = {
        ("HttpGenerate", "OK"): len(SCRIPT),
        ("HttpGenerate", "INVALID_ARGUMENT"): 3,
        ("HttpGenerate", "NOT_FOUND"): 1,
        ("HttpListModels", "OK"): 1,
    }
    started = {"HttpGenerate": len(SCRIPT) + len(REFUSED), "HttpListModels": 1}
    assert counters(before, after) == {
        **{
            sample("diffusion_requests_finished_total", method=method, code=code): number
            for (method, code), number in ended.items()
        },
        **{
            sample("diffusion_requests_started_total", method=method): number
            for method, number in started.items()
        },
        **{
            sample("diffusion_images_total", model="mnist", label=label): number
            for label, number in images.items()
        },
        sample("diffusion_requests_refused_total", reason="invalid_argument"): 3,
        sample("diffusion_requests_refused_total", reason="unknown_model"): 1,
        of_kind("useful"): sum(rows(options) for options in SCRIPT),
    }


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that can be made to do whatever there is a counter for."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    tokens.write_text(TOKEN + "\n")
    flags = {
        "--provider": "cpu",
        "--max-lanes": "8",
        "--max-queued-images": "250",
        "--max-images-per-request": "250",
        "--cache-bytes": "1000000",
        "--auth-tokens-file": str(tokens),
    }
    program = (str(Path(faulty_server.__file__)),)
    arguments = tuple(word for pair in flags.items() for word in pair)
    with running_server(MNIST, flags=arguments, program=program) as server:
        yield server


@contextlib.asynccontextmanager
async def growth(server: ServerProcess) -> AsyncIterator[Samples]:
    """What the server counts meanwhile, until it is idle; filled in at the end."""
    before = await asyncio.to_thread(server.until_idle)
    counted: Samples = {}
    yield counted
    after = await asyncio.to_thread(server.until_idle)
    counted.update(counters(before, after))


async def until(server: ServerProcess, name: str, value: float, **labels: str) -> None:
    key = sample(name, **labels)
    await asyncio.to_thread(server.until, lambda samples: samples[key] == value)


def of(counted: Samples, name: str) -> dict[str, float]:
    """The series of a metric that have one label beside the model, by its value."""
    return {
        next(value for label, value in labels if label != "model"): number
        for (each, labels), number in counted.items()
        if each == name
    }


async def test_cancelled_requests_are_counted_by_how_far_they_were(faulty: ServerProcess) -> None:
    ledger = Ledger()
    work: dict[str, Any] = {**LONG, "timeout_seconds": 1e6}  # accepted, however slow the machine is
    drawn = pb.GenerateRequest(
        label=4, count=8, sampler=pb.SAMPLER_DDPM, num_steps=1, guidance_scale=1.0
    )
    authorization = f"Bearer {TOKEN}"
    async with (
        growth(faulty) as counted,
        AsyncClient(faulty.target, retry=None, token=TOKEN) as client,
        grpc.aio.insecure_channel(faulty.target) as channel,
    ):
        with RawConnection(faulty.port, initial_window_bytes=0) as unread:
            unread.ask(drawn.SerializeToString(), GENERATE_STREAM, authorization=authorization)
            unread.flush()
            await until(faulty, "diffusion_rows_total", 8, model="mnist", kind="useful")
            running = asyncio.create_task(ledger.generate(client, 2, **work))
            await until(faulty, "diffusion_lanes_in_use", 8, model="mnist")
            queued = asyncio.create_task(ledger.generate(client, 3, **{**work, "count": 100}))
            await until(faulty, "diffusion_requests_waiting", 1, model="mnist")
            arriving: Any = channel.stream_unary(f"/{SERVICE}/Generate")(
                metadata=[("authorization", authorization)]
            )
            await until(faulty, "diffusion_requests_started_total", 3, method="Generate")
            for call in (queued, running, arriving):
                call.cancel()
        await asyncio.gather(queued, running)
    assert of(counted, "diffusion_requests_cancelled_total") == {
        "sending": 1, "running": 1, "queued": 1, "arriving": 1,
    }  # fmt: skip
    finished = "diffusion_requests_finished_total"
    assert counted[sample(finished, method="Generate", code="CANCELLED")] == 3
    assert counted[sample(finished, method="GenerateStream", code="CANCELLED")] == 1
    assert counted[of_kind("useful")] == 8
    assert counted[of_kind("wasted")] >= 8


async def test_refused_requests_are_counted_by_the_reason(faulty: ServerProcess) -> None:
    ledger = Ledger()
    # Work that is not finished before this test is over, however quick the machine is, and accepted
    # however slow it is; and a deadline that cannot be met, but is far enough to reach the server.
    running_work: dict[str, Any] = {**LONG, "guidance_scale": 2.0, "timeout_seconds": 1e6}
    waiting_work: dict[str, Any] = {**running_work, "count": 200}
    late: dict[str, Any] = {"count": 50, "num_steps": 1000, "timeout_seconds": 5.0}

    async def ask(client: AsyncClient, label: int, **options: Any) -> None:
        # A machine that is busy enough makes a server stall for a moment: then it refuses all.
        while await ledger.generate(client, label, **options) == "UNAVAILABLE":
            await asyncio.sleep(0.1)

    async with (
        growth(faulty) as counted,
        AsyncClient(faulty.target, retry=None, token=TOKEN) as client,
        AsyncClient(faulty.target, retry=None) as stranger,
    ):
        running = asyncio.create_task(ask(client, 2, **running_work))
        await until(faulty, "diffusion_lanes_in_use", 8, model="mnist")
        waiting = asyncio.create_task(ask(client, 3, **waiting_work))
        await until(faulty, "diffusion_images_waiting", 200, model="mnist")
        for _ in range(3):
            await ask(client, 4, count=51)
        for _ in range(2):
            await ask(client, 4, **late)
        await ask(stranger, 4, count=1)
        for refused in REFUSED:
            await ask(client, **{"label": 1, "count": 1, **refused})
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting)
    expected = {
        "queue_full": 3, "deadline": 2, "unauthenticated": 1, "invalid_argument": 3,
        "unknown_model": 1,
    }  # fmt: skip
    if stalled := ledger.statuses["Generate", "UNAVAILABLE"]:
        expected["stalled"] = stalled
    assert of(counted, "diffusion_requests_refused_total") == expected
    counters_expected = ledger.as_counters()
    assert {key: counted.get(key) for key in counters_expected} == counters_expected
    assert of_kind("useful") not in counted


async def test_what_the_cache_has_costs_no_row(faulty: ServerProcess) -> None:
    ledger = Ledger()
    async with (
        growth(faulty) as counted,
        AsyncClient(faulty.target, retry=None, token=TOKEN) as client,
    ):
        for _ in range(3):
            await ledger.generate(client, **SCRIPT[1], seed=77)
    assert counted == {
        **ledger.as_counters(),
        **ledger.as_grpc_counters(),
        sample("diffusion_cache_hits_total", model="mnist"): 10.0,
        of_kind("useful"): float(rows(SCRIPT[1])),
    }


async def test_failures_are_counted_where_they_happen(faulty: ServerProcess) -> None:
    ledger = Ledger()
    request: dict[str, Any] = {
        "label": 1, "count": 4, "num_steps": 5, "sampler": "ddpm", "guidance_scale": 1.0,
    }  # fmt: skip
    async with (
        growth(faulty) as counted,
        AsyncClient(faulty.target, retry=None, token=TOKEN) as client,
    ):
        for fault in (faulty_server.NAN_ONCE, faulty_server.RAISE_ONCE):
            faulty.signal(fault)
            await ledger.generate(client, **request)
        faulty.signal(signal.SIGUSR1)
        await ledger.generate(client, **request)
        faulty.signal(signal.SIGUSR1)
        faulty.signal(signal.SIGHUP)
        await until(faulty, "diffusion_model_reloads_total", 1, model="mnist", outcome="ok")
        await ledger.generate(client, **request)
    # The first step of two requests, by one worker or by both of them; the third had none.
    assert counted.pop(of_kind("wasted")) in {4.0, 6.0, 8.0}
    assert counted == {
        **ledger.as_counters(),
        **ledger.as_grpc_counters(),
        sample("diffusion_nonfinite_lanes_total", model="mnist"): 1.0,
        sample("diffusion_network_failures_total", model="mnist"): 1.0,
        sample("diffusion_engine_restarts_total", model="mnist"): 1.0,
        sample("diffusion_model_reloads_total", model="mnist", outcome="ok"): 1.0,
        of_kind("useful"): float(rows(request)),
    }
    assert ledger.statuses == {("Generate", "INTERNAL"): 3, ("Generate", "OK"): 1}


async def test_every_label_has_only_the_values_that_are_declared(faulty: ServerProcess) -> None:
    """After all that: whoever adds a value declares it, so that it is there from the start."""
    declared = {family.name: family.labels for family in FAMILIES}
    seen = {(name, label, value) for name, labels in faulty.metrics() for label, value in labels}
    for name, label, value in seen:
        values = declared.get(name, {}).get(label)
        assert not values or value in values, (name, label, value)
