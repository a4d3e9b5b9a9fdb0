"""Promise: the same request gives the same pixels, whoever shares the batch, on any replica."""

import asyncio
import random
from typing import Any

import pytest

from serving.client import AsyncClient
from tests.fault_figures import Record
from tests.ledger import digests, mixed_options
from tests.server_process import MNIST, ServerProcess, running_server

FULL = pytest.param(24, 200, marks=[pytest.mark.fault, pytest.mark.timeout(300)], id="full")

Digests = list[dict[int, str]]


def draw(chance: random.Random, requests: int) -> list[dict[str, Any]]:
    """The request that a person would make, and others of every kind."""
    asked = [{"label": 7, "count": 3, "seed": 0}]
    return asked + [mixed_options(chance) for _ in range(requests - 1)]


async def alone(target: str, asked: list[dict[str, Any]]) -> Digests:
    async with AsyncClient(target) as client:
        return [digests((await client.generate(**options)).images) for options in asked]


async def among_others(target: str, asked: list[dict[str, Any]], others: int) -> Digests:
    """Asks at times that are not in step with those of others."""
    chance = random.Random(others)

    async def late(options: dict[str, Any]) -> dict[int, str]:
        await asyncio.sleep(chance.uniform(0, 0.02 * others))
        return digests((await client.generate(**options)).images)

    async with AsyncClient(target) as client:
        crowd = [asyncio.create_task(late(mixed_options(chance))) for _ in range(others)]
        found = await asyncio.gather(*(late(options) for options in asked))
        await asyncio.gather(*crowd)
    return found


@pytest.mark.parametrize(("requests", "others"), [pytest.param(5, 20, id="short"), FULL])
async def test_pixels_are_those_of_the_request_alone(
    mnist_server: ServerProcess, figure: Record, requests: int, others: int
) -> None:
    asked = draw(random.Random(1), requests)
    expected = await alone(mnist_server.target, asked)
    assert len({digest for each in expected for digest in each.values()}) == sum(
        options["count"] for options in asked
    ), "different requests drew equal images"
    assert await among_others(mnist_server.target, asked, others) == expected
    for threads, lanes in (("1", "7"), ("2", "48")):
        flags = ("--provider", "cpu", "--num-threads", threads, "--max-lanes", lanes)
        with running_server(MNIST, flags=flags) as restarted:
            assert await alone(restarted.target, asked) == expected
            assert await among_others(restarted.target, asked, others) == expected
    figure("equal sha256, alone and among others, 2 restarts, 1 and 2 threads",
           f"{requests} of {requests} requests", "all")  # fmt: skip


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m", "ddim_stochastic"])
async def test_an_image_depends_on_its_index_and_not_on_count_or_first_index(
    mnist_server: ServerProcess, sampler: str
) -> None:
    options: dict[str, Any] = {"seed": 2**64 - 1, "sampler": sampler, "guidance_scale": 1.5}
    async with AsyncClient(mnist_server.target) as client:
        whole = digests((await client.generate(4, 16, **options)).images)
        one = digests((await client.generate(4, 1, **options)).images)
        parts = [
            digests((await client.generate(4, count, first_index=first, **options)).images)
            for first, count in ((0, 5), (5, 1), (6, 10))
        ]
    assert one == {0: whole[0]}
    assert {index: digest for part in parts for index, digest in part.items()} == whole
    assert len(set(whole.values())) == 16
