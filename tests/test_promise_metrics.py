"""Promise: metrics tell the truth: after a scripted run, every counter equals the ledger."""

import asyncio
from typing import Any

from diffusion.samplers import network_rows
from serving.client import AsyncClient
from tests.fault_figures import Record
from tests.ledger import LONG, Ledger
from tests.server_process import Samples, ServerProcess, counters, sample, total

SCRIPT: list[dict[str, Any]] = [
    {"label": 0, "count": 1, "sampler": "ddpm", "num_steps": 3, "guidance_scale": 1.0},
    {"label": 9, "count": 5, "sampler": "ddim", "num_steps": 4, "guidance_scale": 2.0},
    {"label": 9, "count": 2, "sampler": "dpmpp_2m", "num_steps": 2, "guidance_scale": 0.0},
    {"label": 5, "count": 70, "sampler": "ddpm", "num_steps": 1, "guidance_scale": 1.0},
    {"label": 3, "count": 3, "sampler": "ddim_stochastic", "num_steps": 8, "guidance_scale": 1.5},
]


def rows(options: dict[str, Any]) -> int:
    per_image = network_rows(options["sampler"], options["num_steps"], options["guidance_scale"])
    return int(options["count"] * per_image)


async def test_every_counter_equals_the_ledger(mnist_server: ServerProcess, figure: Record) -> None:
    ledger = Ledger()
    before = await asyncio.to_thread(mnist_server.until_idle)
    async with AsyncClient(mnist_server.target, retry=None) as client:
        for options in SCRIPT:
            await ledger.generate(client, **options)
            await ledger.stream(client, **options)
        computed = await asyncio.to_thread(mnist_server.until_idle)
        for refused in ({"label": 10}, {"count": 0}, {"num_steps": 1001}, {"model": "other"}):
            await ledger.generate(client, **{"label": 1, "count": 1, **refused})
        cancelled = asyncio.create_task(ledger.stream(client, 2, **LONG))
        running = sample("diffusion_lanes_in_use", model="mnist")
        await asyncio.to_thread(mnist_server.until, lambda samples: samples[running] == 8)
        cancelled.cancel()
        await cancelled
        await asyncio.to_thread(mnist_server.until_idle)
        await client.models()
    after = await asyncio.to_thread(mnist_server.until_idle)

    expected: Samples = {
        **ledger.as_counters(),
        sample("diffusion_requests_refused_total", reason="invalid_argument"): 3.0,
        sample("diffusion_requests_refused_total", reason="unknown_model"): 1.0,
        sample("diffusion_requests_started_total", method="ListModels"): 1.0,
        sample("diffusion_requests_finished_total", method="ListModels", code="OK"): 1.0,
    }
    counted = counters(before, after)
    assert {key: counted.get(key) for key in expected} == expected
    assert not [
        key for key in counted if key not in expected and key[0].startswith("diffusion_request")
    ]

    def grown(name: str, **labels: str) -> float:
        return total(computed, name, **labels) - total(before, name, **labels)

    work = 2 * sum(rows(options) for options in SCRIPT)
    assert grown("diffusion_engine_step_rows_sum", model="mnist") == work
    assert grown("diffusion_queue_seconds_count", model="mnist") == 2 * len(SCRIPT)
    assert grown("diffusion_compute_seconds_count", model="mnist") == 2 * len(SCRIPT)
    assert grown("diffusion_request_seconds_count") == 2 * len(SCRIPT)
    figure("counters equal to the ledger", f"{len(expected)} of {len(expected)}", "all")
    figure("network rows counted, of the script's", f"{work} of {work}", "all")
