"""Promise: small requests are quick beside a client that asks for as much as it may."""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncGenerator

import pytest

from serving.client import AsyncClient
from tests.fault_figures import Record
from tests.server_process import MNIST, running_server

LARGEST = 1024
SMALL_CLIENTS = 10
SMALL_LOAD = 0.2
"""Share of the time that the small clients' requests would take if each ran alone. Beside the large
client they need about half of that, as rows are cheaper in large batches."""
FULL = pytest.param(80, 3.0, 0.8, marks=[pytest.mark.fault, pytest.mark.timeout(300)], id="full")
SHORT = pytest.param(6, 15.0, 0.2, id="short")


async def latency_alone(client: AsyncClient) -> float:
    """Median seconds of a request for one image when nobody else asks."""
    taken = [await timed(client, seed) for seed in range(20)]
    return statistics.median(taken[1:])


async def timed(client: AsyncClient, seed: int) -> float:
    begin = time.monotonic()
    await client.generate(seed % 10, 1, seed=seed)
    return time.monotonic() - begin


async def small(client: AsyncClient, number: int, pause_seconds: float, end: float) -> list[float]:
    """Asks for one image now and then; returns how long each took.

    Pauses are random: clients that pause equally fall into step with one another.
    """
    chance = random.Random(number)
    await asyncio.sleep(chance.uniform(0, pause_seconds))
    taken = []
    while time.monotonic() < end:
        taken.append(await timed(client, chance.getrandbits(32)))
        pause = chance.expovariate(1 / pause_seconds)
        await asyncio.sleep(min(pause, max(0.0, end - time.monotonic())))
    return taken


async def small_clients(client: AsyncClient, pause_seconds: float, seconds: float) -> list[float]:
    end = time.monotonic() + seconds
    taken = await asyncio.gather(
        *(small(client, number, pause_seconds, end) for number in range(SMALL_CLIENTS))
    )
    return sorted(latency for each in taken for latency in each)


async def large(client: AsyncClient) -> AsyncGenerator[float, None]:
    """Asks for the largest count again and again; gives the time of each image."""
    while True:
        async with client.stream(7, LARGEST, seed=1) as events:
            async for _ in events:
                yield time.monotonic()


async def images_per_second(client: AsyncClient, seconds: float) -> float:
    """What the large client gets in a time."""
    end_seconds = time.monotonic() + seconds
    images = 0
    events = large(client)
    async for when in events:
        if when > end_seconds:
            break
        images += 1
    await events.aclose()
    return images / seconds


def p99(latencies: list[float]) -> float:
    return latencies[int(0.99 * len(latencies))]


@pytest.mark.parametrize(("seconds", "most_slower", "least_share"), [SHORT, FULL])
async def test_one_image_is_not_stuck_behind_a_thousand(
    figure: Record, seconds: float, most_slower: float, least_share: float
) -> None:
    with running_server(MNIST, flags=("--provider", "cpu", "--log-level", "warning")) as server:
        async with AsyncClient(server.target, retry=None) as client:
            pause_seconds = (SMALL_CLIENTS / SMALL_LOAD - 1) * await latency_alone(client)
            pause_seconds = min(pause_seconds, seconds / 8)  # several requests of each
            unloaded = await small_clients(client, pause_seconds, seconds / 2)
            alone = await images_per_second(client, seconds / 2)
            await asyncio.to_thread(server.until_idle)
            together = asyncio.create_task(images_per_second(client, seconds))
            await asyncio.sleep(1.0)
            loaded = await small_clients(client, pause_seconds, seconds - 1.0)
            beside = await together
    figure("pause of a small client, mean seconds", pause_seconds, "-")
    figure("small requests unloaded, p50 and p99 seconds",
           f"{unloaded[len(unloaded) // 2]:.3f}, {p99(unloaded):.3f}", "-")  # fmt: skip
    figure("small requests beside the large client, p50 and p99 seconds",
           f"{loaded[len(loaded) // 2]:.3f}, {p99(loaded):.3f}", "-")  # fmt: skip
    figure("p99 loaded / p99 unloaded", p99(loaded) / p99(unloaded), f"<= {most_slower:g}")
    figure("large client's images per second alone", alone, "-")
    figure("share of that which it keeps", beside / alone, f">= {least_share:g}")
    assert p99(loaded) <= most_slower * p99(unloaded)
    assert beside >= least_share * alone
