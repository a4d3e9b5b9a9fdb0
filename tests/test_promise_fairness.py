"""Promise: small requests are quick beside a client that asks for as much as it may."""

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from serving.client import AsyncClient
from tests.fault_figures import Record
from tests.server_process import MNIST, running_server

LARGEST = 1024
SMALL_CLIENTS = 10
PAUSE_SECONDS = 0.5  # between the requests of a small client
FULL = pytest.param(40, 3.0, 0.8, marks=[pytest.mark.fault, pytest.mark.timeout(300)], id="full")
SHORT = pytest.param(4, 15.0, 0.2, id="short")


async def small(client: AsyncClient, number: int, end_seconds: float) -> list[float]:
    """Asks for one image now and then; returns how long each took."""
    await asyncio.sleep(PAUSE_SECONDS * number / SMALL_CLIENTS)
    taken = []
    while (begin := time.monotonic()) < end_seconds:
        await client.generate(number, 1, seed=len(taken))
        taken.append(time.monotonic() - begin)
        await asyncio.sleep(PAUSE_SECONDS)
    return taken


async def small_clients(client: AsyncClient, seconds: float) -> list[float]:
    end_seconds = time.monotonic() + seconds
    taken = await asyncio.gather(
        *(small(client, number, end_seconds) for number in range(SMALL_CLIENTS))
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
            unloaded = await small_clients(client, seconds / 2)
            alone = await images_per_second(client, seconds / 2)
            await asyncio.to_thread(server.until_idle)
            together = asyncio.create_task(images_per_second(client, seconds))
            await asyncio.sleep(1.0)
            loaded = await small_clients(client, seconds - 1.0)
            beside = await together
    figure("small requests unloaded, p50 and p99 seconds",
           f"{unloaded[len(unloaded) // 2]:.3f}, {p99(unloaded):.3f}", "-")  # fmt: skip
    figure("small requests beside the large client, p50 and p99 seconds",
           f"{loaded[len(loaded) // 2]:.3f}, {p99(loaded):.3f}", "-")  # fmt: skip
    figure("p99 loaded / p99 unloaded", p99(loaded) / p99(unloaded), f"<= {most_slower:g}")
    figure("large client's images per second alone", alone, "-")
    figure("share of that which it keeps", beside / alone, f">= {least_share:g}")
    assert p99(loaded) <= most_slower * p99(unloaded)
    assert beside >= least_share * alone
