"""Promise: five times more requests than fit cost little of what fits, and are refused at once."""

import asyncio
import random
import statistics
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from serving.client import AsyncClient, ResourceExhaustedError
from tests.fault_figures import Record
from tests.server_process import MNIST, ServerProcess, running_server, sample, total
from tests.server_vitals import vitals

COUNT = 4
QUEUE = 100
FLAGS = (
    "--provider", "cpu", "--max-queued-images", str(QUEUE), "--max-images-per-request", "64",
    "--log-level", "warning",
)  # fmt: skip
FACTOR = 5
# Beside whatever else this machine does, which changes from second to second: no collapse.
SHORT = pytest.param(2, 3, 0.2, 0.5, id="short")
FULL = pytest.param(
    10, 60, 0.9, 0.99, marks=[pytest.mark.fault, pytest.mark.timeout(300)], id="full"
)
CALLERS = 24  # their images fill every lane and fit into the queue


async def peak(server: ServerProcess, seconds: float) -> float:
    """Images per second for callers who ask again as soon as they have their answer."""
    async with AsyncClient(server.target, timeout_seconds=60) as client:
        end_seconds = time.monotonic() + seconds

        async def caller(seed: int) -> None:
            while time.monotonic() < end_seconds:
                await client.generate(seed % 10, COUNT, seed=seed)

        async def callers() -> None:
            await asyncio.gather(*(caller(seed) for seed in range(CALLERS)))

        return await images_per_second(server, callers())


async def images_per_second(server: ServerProcess, work: Coroutine[Any, Any, None]) -> float:
    """Images delivered per second, from the first request to the last answer.

    `work` has not begun: what is delivered before the first count would be lost.
    """
    before, begin = await asyncio.to_thread(server.until_idle), time.monotonic()
    await work
    seconds = time.monotonic() - begin
    after = await asyncio.to_thread(server.until_idle)
    images = "diffusion_images_total"
    return (total(after, images) - total(before, images)) / seconds


class Arrivals:
    """Requests that come when they come, whatever has become of those before."""

    def __init__(self) -> None:
        self.refused_seconds: list[float] = []
        self.answered = 0

    async def run(self, client: AsyncClient, per_second: float, seconds: float) -> None:
        chance = random.Random(7)
        tasks = []
        begin, due = time.monotonic(), 0.0
        while due < seconds:
            due += chance.expovariate(per_second)
            await asyncio.sleep(max(0.0, begin + due - time.monotonic()))
            tasks.append(asyncio.create_task(self._one(client, chance.getrandbits(32))))
        await asyncio.gather(*tasks)

    async def _one(self, client: AsyncClient, seed: int) -> None:
        begin = time.monotonic()
        try:
            await client.generate(seed % 10, COUNT, seed=seed)
            self.answered += 1
        except ResourceExhaustedError as refused:
            assert refused.retry_after_seconds is not None
            self.refused_seconds.append(time.monotonic() - begin)


@pytest.mark.parametrize(("peak_seconds", "seconds", "least_goodput", "least_quick"), [SHORT, FULL])
async def test_what_fits_is_done_and_the_rest_refused_at_once(
    figure: Record, peak_seconds: float, seconds: float, least_goodput: float, least_quick: float
) -> None:
    with running_server(MNIST, flags=FLAGS) as server:
        best = await peak(server, peak_seconds)
        before = await asyncio.to_thread(server.metrics)
        rss_bytes = vitals(server.process.pid).rss_bytes
        arrivals = Arrivals()
        async with AsyncClient(server.target, retry=None, timeout_seconds=120) as client:
            goodput = await images_per_second(
                server, arrivals.run(client, FACTOR * best / COUNT, seconds)
            )
        after = await asyncio.to_thread(server.metrics)
        grown_mib = (vitals(server.process.pid).rss_bytes - rss_bytes) / 2**20
    refused = sorted(arrivals.refused_seconds)
    assert refused, "not overloaded"
    # By the server's own clock, from the arrival of a request to its status; the client's includes
    # the wait for a processor of a machine that is all busy.
    bucket = sample("diffusion_request_seconds_bucket", method="Generate", le="0.01")
    quick = after[bucket] - before.get(bucket, 0.0)
    figure("peak, images per second", best, "-")
    figure("goodput at 5 x that, share of the peak", goodput / best, f">= {least_goodput}")
    figure("requests refused, answered", f"{len(refused)}, {arrivals.answered}", "-")
    figure("refused within 10 ms by the server's clock", quick / len(refused), f">= {least_quick}")
    figure("refusal at the client, median seconds", statistics.median(refused), "-")
    figure("refusal at the client, p99 seconds", refused[int(0.99 * len(refused))], "-")
    figure("MiB of growth", grown_mib, "< 32")
    assert goodput / best >= least_goodput
    assert quick >= least_quick * len(refused)
    assert grown_mib < 32
