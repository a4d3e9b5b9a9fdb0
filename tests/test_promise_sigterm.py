"""Promise: SIGTERM loses nothing: what was accepted is finished, what is new finds another."""

import asyncio
import json
import random
import signal
import time
from typing import Any

import pytest

from serving.client import AsyncClient
from tests.fault_figures import Record
from tests.ledger import digests, mixed_options
from tests.server_process import MNIST, ServerProcess, active, running_server

FULL = pytest.param(16, 6, marks=[pytest.mark.fault, pytest.mark.timeout(300)], id="full")
FLAGS = ("--provider", "cpu", "--max-lanes", "16", "--drain-grace-seconds", "0.2")


def statuses(server: ServerProcess) -> list[str]:
    """The status of each Generate in the server's log."""
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    return [line["code"] for line in lines if line.get("method") == "Generate"]


@pytest.mark.parametrize(("clients", "rounds"), [pytest.param(6, 3, id="short"), FULL])
async def test_what_was_accepted_is_finished_and_clients_notice_nothing(
    mnist_server: ServerProcess, figure: Record, clients: int, rounds: int
) -> None:
    chance = random.Random(3)
    work = [[mixed_options(chance) for _ in range(rounds)] for _ in range(clients)]
    for options in (options for each in work for options in each):
        options |= {"count": 6, "num_steps": 8}

    async def ask(client: AsyncClient, asked: list[dict[str, Any]]) -> list[dict[int, str]]:
        return [digests((await client.generate(**options)).images) for options in asked]

    with running_server(MNIST, flags=(*FLAGS, "--log-format", "json")) as server:
        targets = f"{server.target},{mnist_server.target}"
        async with AsyncClient(targets, timeout_seconds=120) as client:
            asking = [asyncio.create_task(ask(client, each)) for each in work]
            # A full batch, and images that wait.
            await asyncio.to_thread(server.until, lambda samples: active(samples) > 20)
            begin = time.monotonic()
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.exit_code, 60) == 0
            seconds = time.monotonic() - begin
            got = await asyncio.gather(*asking)
        codes = statuses(server)
        assert "Traceback" not in server.log
    async with AsyncClient(mnist_server.target) as client:
        assert await ask(client, [options for each in work for options in each]) == [
            each for answers in got for each in answers
        ]
    assert set(codes) <= {"OK", "UNAVAILABLE"}, "something accepted was not finished"
    figure(
        "requests answered with equal pixels", f"{clients * rounds} of {clients * rounds}", "all"
    )
    figure("accepted and finished by the drained server", codes.count("OK"), "all accepted")
    figure("refused by it, and answered by the other", codes.count("UNAVAILABLE"), "-")
    figure("seconds from SIGTERM to exit code 0", seconds, "-")


async def test_a_second_signal_exits_at_once(figure: Record, patience: float) -> None:
    with running_server(MNIST, flags=FLAGS) as server:
        async with AsyncClient(server.target, retry=None) as client:
            running = asyncio.create_task(client.generate(0, 16, num_steps=1000))
            await asyncio.to_thread(server.until, lambda samples: active(samples) > 16)
            server.signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            begin = time.monotonic()
            server.signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.exit_code) == 128 + signal.SIGTERM
            seconds = time.monotonic() - begin
            with pytest.raises(Exception, match="closed the connection|no server answers"):
                await running
    figure("seconds from the second signal to the exit", seconds, "< 1")
    assert seconds < 1 * patience
