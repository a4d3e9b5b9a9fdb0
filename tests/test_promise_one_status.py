"""Promise: every request gets exactly one final status, and the server counts the same."""

import asyncio
import random
import time
from typing import Any

import pytest

from serving.client import AsyncClient
from tests.fault_figures import Record
from tests.ledger import LONG, Ledger, mixed_options
from tests.server_process import ServerProcess, counters, total

FULL = pytest.param(500, marks=[pytest.mark.fault, pytest.mark.timeout(300)], id="full")
DEADLINE_SECONDS = 1.0  # long enough to reach the server, however busy this machine is


def draw(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """What becomes of a request, and the request."""
    options = mixed_options(chance)
    kind = chance.choices(
        ("plain", "cancelled", "invalid", "unknown model", "late"), (60, 20, 10, 5, 5)
    )[0]
    if kind in ("cancelled", "late"):
        options |= LONG
    if kind == "late":
        options["timeout_seconds"] = DEADLINE_SECONDS
    if kind == "invalid":
        options[chance.choice(("label", "num_steps", "count"))] = 100_000
    if kind == "unknown model":
        options["model"] = "nobody"
    return kind, options


@pytest.mark.parametrize("requests", [pytest.param(60, id="short"), FULL])
async def test_every_request_ends_once_and_the_counters_are_the_ledger(
    mnist_server: ServerProcess, figure: Record, requests: int
) -> None:
    chance = random.Random(4)
    ledger = Ledger()
    before = await asyncio.to_thread(mnist_server.until_idle)
    async with AsyncClient(mnist_server.target, retry=None) as client:
        tasks, to_cancel = [], []
        for _ in range(requests):
            kind, options = draw(chance)
            method = chance.choice((ledger.generate, ledger.stream))
            tasks.append(asyncio.create_task(method(client, **options)))
            if kind == "cancelled":
                to_cancel.append(tasks[-1])
            await asyncio.sleep(chance.uniform(0, 0.02))
        # A request that is cancelled on its way was never a request: all must have arrived.
        arrived = total(before, "diffusion_requests_started_total") + requests
        await asyncio.to_thread(
            mnist_server.until,
            lambda samples: total(samples, "diffusion_requests_started_total") == arrived,
        )
        for task in to_cancel:
            await asyncio.sleep(chance.uniform(0, 0.02))
            task.cancel()
        await asyncio.gather(*tasks)
    begin = time.monotonic()
    after = await asyncio.to_thread(mnist_server.until_idle, 5)
    idle_seconds = time.monotonic() - begin

    assert ledger.statuses.total() == requests
    codes = {code for _, code in ledger.statuses}
    assert codes >= {"OK", "CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert codes <= {
        "OK", "CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND",
        "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED",
    }  # fmt: skip
    expected = ledger.as_counters()
    kinds = {name for name, _ in expected}
    counted = {key: value for key, value in counters(before, after).items() if key[0] in kinds}
    assert counted == expected
    figure("requests with exactly one status", f"{ledger.statuses.total()} of {requests}", "all")
    figure("counters equal to the ledger", f"{len(counted)} of {len(expected)}", "all")
    figure("seconds until nothing is active", idle_seconds, "< 5")
