"""Promise: a replica that is killed costs time, not answers, and not a single bit."""

import asyncio
import contextlib
import random
import signal
import time
from typing import Any

import pytest

from serving.client import AsyncClient, GeneratedImage
from tests.fault_figures import Record
from tests.ledger import digests, mixed_options
from tests.server_process import MNIST, ServerProcess, running_server, total

FULL = pytest.param(3, 200, marks=[pytest.mark.fault, pytest.mark.timeout(300)], id="full")
FLAGS = ("--provider", "cpu", "--max-lanes", "8", "--num-threads", "1")
CALLERS = 12


async def generate(client: AsyncClient, options: dict[str, Any]) -> dict[int, str]:
    return digests((await client.generate(**options)).images)


async def stream(client: AsyncClient, options: dict[str, Any]) -> dict[int, str]:
    async with client.stream(**options) as events:
        images = [event async for event in events if isinstance(event, GeneratedImage)]
    assert len({image.index for image in images}) == len(images), "an image came twice"
    return digests(images)


@pytest.mark.parametrize(("replicas", "requests"), [pytest.param(2, 24, id="short"), FULL])
async def test_every_request_is_answered_with_the_pixels_of_an_undisturbed_run(
    mnist_server: ServerProcess, figure: Record, replicas: int, requests: int
) -> None:
    chance = random.Random(5)
    work = [
        (chance.choice((generate, stream)), mixed_options(chance) | {"num_steps": 6})
        for _ in range(requests)
    ]
    async with AsyncClient(mnist_server.target) as client:
        expected = [await generate(client, options) for _, options in work]

    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running_server(MNIST, flags=FLAGS)) for _ in range(replicas)]
        got: list[dict[int, str]] = [{} for _ in work]
        left = iter(list(enumerate(work)))

        async def caller(client: AsyncClient) -> None:
            for number, (ask, options) in left:
                got[number] = await ask(client, options)

        targets = ",".join(server.target for server in servers)
        async with AsyncClient(targets, timeout_seconds=60) as client:
            callers = [asyncio.create_task(caller(client)) for _ in range(CALLERS)]
            victim = servers[0]
            await asyncio.to_thread(victim.until, lambda samples: finished(samples) > requests / 20)
            begin = time.monotonic()
            victim.signal(signal.SIGKILL)
            await asyncio.gather(*callers)
            seconds = time.monotonic() - begin
        assert victim.exit_code() == -signal.SIGKILL
    assert got == expected
    figure("answered with equal pixels", f"{len(got)} of {requests}", "all")
    figure("seconds from SIGKILL to the last answer", seconds, "-")


def finished(samples: Any) -> float:
    return total(samples, "diffusion_requests_finished_total", code="OK")
