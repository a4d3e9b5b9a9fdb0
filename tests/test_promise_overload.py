"""Promise: five times more requests than fit cost little of what fits, and are refused at once.

Those who ask run on the same processors as the server. Five times more requests take more of these,
which is not the server's doing, so images are compared for what was left of the processors.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from serving.client import AsyncClient, ResourceExhaustedError
from serving.cpu_count import usable_cpus
from tests.fault_figures import Record
from tests.server_process import MNIST, ServerProcess, running_server, sample, total
from tests.server_vitals import vitals

COUNT = 4
IMAGES = "diffusion_images_total"
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


@dataclass(frozen=True)
class Throughput:
    """What a server did, and what it had for that.

    Attributes:
        images_per_second: delivered, from the first request to the last answer.
        processors: that those who asked left to it, on average.
    """

    images_per_second: float
    processors: float

    @property
    def images_per_processor_second(self) -> float:
        return self.images_per_second / self.processors


async def peak(server: ServerProcess, seconds: float) -> Throughput:
    """What it does for callers who ask again as soon as they have their answer."""
    async with AsyncClient(server.target, timeout_seconds=60) as client:
        end_seconds = time.monotonic() + seconds

        async def caller(seed: int) -> None:
            while time.monotonic() < end_seconds:
                await client.generate(seed % 10, COUNT, seed=seed)

        async def callers() -> None:
            await asyncio.gather(*(caller(seed) for seed in range(CALLERS)))

        return await throughput(server, callers())


async def throughput(server: ServerProcess, work: Coroutine[Any, Any, None]) -> Throughput:
    """`work` has not begun: what is delivered before the first count would be lost."""
    before = await asyncio.to_thread(server.until_idle)
    begin, begin_processor_seconds = time.monotonic(), time.process_time()
    await work
    seconds = time.monotonic() - begin
    mine = (time.process_time() - begin_processor_seconds) / seconds
    after = await asyncio.to_thread(server.until_idle)
    images = total(after, IMAGES) - total(before, IMAGES)
    return Throughput(images / seconds, usable_cpus() - mine)


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
            per_second = FACTOR * best.images_per_second / COUNT
            under_load = await throughput(server, arrivals.run(client, per_second, seconds))
        after = await asyncio.to_thread(server.metrics)
        grown_mib = (vitals(server.process.pid).rss_bytes - rss_bytes) / 2**20
    refused = sorted(arrivals.refused_seconds)
    assert refused, "not overloaded"
    # By the server's own clock, from the arrival of a request to its status; the client's includes
    # the wait for a processor of a machine that is all busy.
    bucket = sample("diffusion_request_seconds_bucket", method="Generate", le="0.01")
    quick = after[bucket] - before.get(bucket, 0.0)
    goodput = under_load.images_per_processor_second / best.images_per_processor_second
    raw = under_load.images_per_second / best.images_per_second
    figure("peak, images per second", best.images_per_second, "-")
    figure("processors left to the server, at the peak", best.processors, "-")
    figure("processors left to the server, at 5 x that", under_load.processors, "-")
    figure("images at 5 x the peak, share of the peak", raw, "-")
    figure("goodput, the same for each processor", goodput, f">= {least_goodput}")
    figure("requests refused, answered", f"{len(refused)}, {arrivals.answered}", "-")
    figure("refused within 10 ms by the server's clock", quick / len(refused), f">= {least_quick}")
    figure("refusal at the client, median seconds", statistics.median(refused), "-")
    figure("refusal at the client, p99 seconds", refused[int(0.99 * len(refused))], "-")
    figure("MiB of growth", grown_mib, "< 32")
    assert goodput >= least_goodput
    assert quick >= least_quick * len(refused)
    assert grown_mib < 32
