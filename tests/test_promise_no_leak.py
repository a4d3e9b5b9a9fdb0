"""Promise: a server that has served for long is as large as one that has just started."""

import asyncio
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from serving.client import AsyncClient
from tests import faulty_server
from tests.fault_figures import Record
from tests.ledger import LONG, Ledger, mixed_options
from tests.server_process import MNIST, ServerProcess, active, running_server, total
from tests.server_vitals import Vitals, vitals

PROGRAM = (str(Path(faulty_server.__file__)),)
FLAGS = ("--provider", "cpu", "--max-lanes", "32")
CALLERS = 8
FULL = pytest.param(60, 540, 1.0, marks=[pytest.mark.fault, pytest.mark.timeout(900)], id="full")
# In seconds, what an allocator keeps for itself is more than what a leak would be.
SHORT = pytest.param(1, 3, 30.0, id="short")


async def load(server: ServerProcess, seconds: float, seed: int) -> int:
    """Mixed requests for so long, a tenth cancelled, a twentieth invalid; returns how many."""
    chance = random.Random(seed)
    ledger = Ledger()
    end_seconds = time.monotonic() + seconds

    async def one(client: AsyncClient) -> None:
        options = mixed_options(chance)
        call = chance.choice((ledger.generate, ledger.stream))
        kind = chance.random()
        if kind < 0.05:
            options["label"] = 99
        if kind > 0.9:
            await cancelled(call(client, **options | LONG), chance.uniform(0.01, 0.2))
        else:
            await call(client, **options)

    async def cancelled(call: Any, after_seconds: float) -> None:
        task = asyncio.create_task(call)
        await asyncio.sleep(after_seconds)
        task.cancel()
        await task

    async def caller() -> None:
        while time.monotonic() < end_seconds:
            # A new connection every now and then: what one costs must come back too.
            async with AsyncClient(server.target, retry=None, timeout_seconds=3600) as client:
                for _ in range(10):
                    await one(client)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    assert {code for _, code in ledger.statuses} <= {"OK", "CANCELLED", "INVALID_ARGUMENT"}
    return ledger.statuses.total()


def settled(server: ServerProcess, most_files: int | None = None) -> tuple[Vitals, int]:
    """The server's vitals and tasks once nothing is active and no connection is left.

    The end of a connection is nothing that a client could wait for: it is given half a moment, or
    as long as it takes until no more than `most_files` are open.
    """
    server.until(lambda samples: active(samples) == 0)
    end_seconds = time.monotonic() + (0.5 if most_files is None else 10)
    while most_files is None or vitals(server.process.pid).files > most_files:
        if time.monotonic() > end_seconds:
            break
        time.sleep(0.05)
    said = server.log.count("asyncio tasks: ")
    server.signal(signal.SIGRTMIN)
    end_seconds = time.monotonic() + 10
    while server.log.count("asyncio tasks: ") == said:
        assert time.monotonic() < end_seconds
        time.sleep(0.01)
    tasks = int(server.log.rpartition("asyncio tasks: ")[2].split()[0])
    return vitals(server.process.pid), tasks


@pytest.mark.parametrize(("warm_up_seconds", "seconds", "mib_per_1000"), [SHORT, FULL])
async def test_memory_threads_files_and_tasks_stay_flat(
    figure: Record, warm_up_seconds: float, seconds: float, mib_per_1000: float
) -> None:
    with running_server(MNIST, flags=FLAGS, program=PROGRAM) as server:
        await load(server, warm_up_seconds, 1)
        before, tasks_before = await asyncio.to_thread(settled, server)
        requests = await load(server, seconds, 2)
        after, tasks_after = await asyncio.to_thread(settled, server, before.files)
        started = total(server.metrics(), "diffusion_requests_started_total")
    grown = (after.rss_bytes - before.rss_bytes) / 2**20 / (requests / 1000)
    figure("requests, cancelled and invalid ones included", requests, "-")
    figure("MiB of growth per 1000 requests", grown, f"< {mib_per_1000:g}")
    figure("MiB at the end", after.rss_bytes / 2**20, "-")
    figure("threads before and after", f"{before.threads}, {after.threads}", "flat")
    figure("files before and after", f"{before.files}, {after.files}", "flat")
    figure("asyncio tasks before and after", f"{tasks_before}, {tasks_after}", "flat")
    assert started > 0
    assert grown < mib_per_1000
    assert after.threads <= before.threads
    assert after.files <= before.files
    assert tasks_after <= tasks_before
