"""Promise: replicas behind Envoy come and go, and callers notice time at the most."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from serving.client import AsyncClient, GeneratedImage
from tests.envoy_process import EnvoyProcess, running_envoy
from tests.fault_figures import Record
from tests.ledger import digests, mixed_options
from tests.server_process import MNIST, ServerProcess, active, free_port, started_server
from tests.server_vitals import cpu_seconds

FLAGS = ("--provider", "cpu", "--max-lanes", "8", "--num-threads", "1")
GRACE = ("--drain-grace-seconds", "1")  # the default: Envoy has to notice within it
REPLICAS = 3
CALLERS = 12


class Replica:
    """A place for a server: whoever dies there is followed by another one on the same port."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.port = free_port()
        self._stack = stack
        self.server = self._start()

    def _start(self) -> ServerProcess:
        started = started_server(MNIST, flags=FLAGS + GRACE, port=self.port)
        return self._stack.enter_context(started)

    def restart(self) -> None:
        self.server = self._start()
        self.server.wait_ready()


@contextlib.contextmanager
def running_replicas() -> Iterator[tuple[list[Replica], EnvoyProcess]]:
    """Three replicas and Envoy in front of them."""
    with contextlib.ExitStack() as stack:
        replicas = [Replica(stack) for _ in range(REPLICAS)]
        for replica in replicas:
            replica.server.wait_ready()
        envoy = stack.enter_context(running_envoy([replica.port for replica in replicas]))
        yield replicas, envoy


Work = list[tuple[bool, dict[str, Any]]]
"""Requests, each with whether it is a stream."""


async def undisturbed(server: ServerProcess, requests: int) -> tuple[Work, list[dict[int, str]]]:
    """So many requests, no two alike, and the pixels that they give."""
    chance = random.Random(11)
    work = [(chance.random() < 0.5, mixed_options(chance)) for _ in range(requests)]
    async with AsyncClient(server.target) as client:
        return work, [digests((await client.generate(**options)).images) for _, options in work]


@dataclass
class Callers:
    """Callers who ask for the same requests again and again, and compare what they get."""

    client: AsyncClient
    work: Work
    expected: list[dict[int, str]]
    answered: Counter[str] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All of them ask until the block is left; then what they have asked is waited for."""
        numbers, going = itertools.cycle(range(len(self.work))), asyncio.Event()

        async def caller() -> None:
            while not going.is_set():
                await self._ask(next(numbers))

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(caller())
            try:
                yield
            finally:
                going.set()

    async def _ask(self, number: int) -> None:
        streaming, options = self.work[number]
        if streaming:
            async with self.client.stream(**options, preview_every=2) as events:
                images = [event async for event in events if isinstance(event, GeneratedImage)]
            assert len({image.index for image in images}) == len(images), "an image came twice"
        else:
            images = list((await self.client.generate(**options)).images)
        assert digests(images) == self.expected[number], "other pixels than undisturbed"
        self.answered["streams" if streaming else "requests"] += 1


SHORT = pytest.param(
    12, ((0, "SIGKILL"), (1, "SIGTERM")), marks=pytest.mark.timeout(240), id="short"
)
FULL = pytest.param(
    60,
    tuple((replica, name) for name in ("SIGKILL", "SIGTERM") for replica in range(REPLICAS)),
    marks=[pytest.mark.fault, pytest.mark.timeout(300)],
    id="full",
)


@pytest.mark.parametrize(("requests", "faults"), [SHORT, FULL])
async def test_whichever_replica_goes_every_request_is_answered_with_equal_pixels(
    mnist_server: ServerProcess,
    figure: Record,
    requests: int,
    faults: tuple[tuple[int, str], ...],
) -> None:
    work, expected = await undisturbed(mnist_server, requests)
    with running_replicas() as (replicas, envoy):
        async with AsyncClient(envoy.target, timeout_seconds=60) as client:
            callers = Callers(client, work, expected)
            async with callers.running():
                for number, name in faults:
                    await asyncio.to_thread(disturb, replicas[number], signal.Signals[name])
                    await asyncio.to_thread(envoy.until_healthy, REPLICAS)
        retried = envoy.stat("upstream_rq_retry")
    for kind, answered in sorted(callers.answered.items()):
        figure(f"{kind} answered with equal pixels", answered, "all")
    figure("replicas killed, drained, and followed by another", len(faults), "-")
    figure("sent again by Envoy", retried, "-")
    assert callers.answered["requests"] >= CALLERS
    assert callers.answered["streams"] >= CALLERS


def disturb(replica: Replica, by: signal.Signals) -> None:
    """Ends a replica that is at work, in one way or the other, and starts another in its place."""
    replica.server.until(lambda samples: active(samples) > 0)
    replica.server.signal(by)
    # Who is asked to go finishes what it has accepted, and ends well.
    assert replica.server.exit_code() == (-by if by is signal.SIGKILL else 0), replica.server.log
    replica.restart()


@pytest.mark.fault
@pytest.mark.timeout(300)
async def test_a_replica_that_freezes_with_requests_in_it_costs_time_and_no_answer(
    mnist_server: ServerProcess, figure: Record
) -> None:
    work, expected = await undisturbed(mnist_server, 24)
    with running_replicas() as (replicas, envoy):
        frozen = replicas[0].server
        async with AsyncClient(envoy.target, timeout_seconds=60) as client:
            callers = Callers(client, work, expected)
            async with callers.running():
                await asyncio.to_thread(frozen.until, lambda samples: active(samples) > 0)
                frozen.signal(signal.SIGSTOP)
                begin = time.monotonic()
                await asyncio.to_thread(envoy.until_healthy, REPLICAS - 1)
                noticed_seconds = time.monotonic() - begin
                # Only the connection's pings tell that what runs there will never be answered.
                await asyncio.to_thread(envoy.until, "http2.keepalive_timeout", bool, 60)
                given_up_seconds = time.monotonic() - begin
            frozen.signal(signal.SIGCONT)
            await asyncio.to_thread(envoy.until_healthy, REPLICAS)
    figure("answered with equal pixels beside a frozen replica", callers.answered.total(), "all")
    figure("seconds until a frozen replica gets nothing new", noticed_seconds, "-")
    figure("seconds until what it had is asked elsewhere", given_up_seconds, "-")


# How much work they do together

COUNT = 8
OPTIONS: dict[str, Any] = {"num_steps": 10, "sampler": "dpmpp_2m", "guidance_scale": 1.0}


@dataclass
class Throughput:
    """What some replicas did in a while."""

    images_per_second: float
    cpus: float  # CPU seconds per second, of the replicas


async def saturate(
    target: str, replicas: list[Replica], callers: int, seconds: float
) -> Throughput:
    """Has so many callers ask for so long, each again as soon as it has its answer."""
    pids = [replica.server.process.pid for replica in replicas]
    async with AsyncClient(target, timeout_seconds=60) as client:
        begin, images = time.monotonic(), 0
        end_seconds = begin + seconds
        cpu_before = sum(cpu_seconds(pid) for pid in pids)

        async def caller(seed: int) -> int:
            received = 0
            while time.monotonic() < end_seconds:
                made = await client.generate(seed % 10, COUNT, seed=seed, **OPTIONS)
                received += len(made.images)
            return received

        images = sum(await asyncio.gather(*(caller(seed) for seed in range(callers))))
        passed = time.monotonic() - begin
    cpu = sum(cpu_seconds(pid) for pid in pids) - cpu_before
    return Throughput(images / passed, cpu / passed)


@pytest.mark.fault
@pytest.mark.timeout(300)
async def test_replicas_give_together_what_each_gives_alone(figure: Record) -> None:
    with running_replicas() as (replicas, envoy):
        alone = [
            await saturate(replica.server.target, [replica], CALLERS // REPLICAS, 8)
            for replica in replicas
        ]
        directly = await asyncio.gather(
            *(
                saturate(replica.server.target, [replica], CALLERS // REPLICAS, 8)
                for replica in replicas
            )
        )
        together = await saturate(envoy.target, replicas, CALLERS, 15)
    total = sum(each.images_per_second for each in alone)
    needed = sum(each.cpus for each in alone)
    # Alone, each had the whole machine; together they cannot have more of it than there is.
    share_of_cpus = min(1.0, len(os.sched_getaffinity(0)) / needed)
    expected = total * share_of_cpus
    figure("images per second of each replica alone, sum", total, "-")
    figure("CPUs in use by them, sum", needed, "-")
    figure("images per second that this machine has room for", expected, "-")
    # What the machine itself loses with every CPU at work: this is not Envoy's doing.
    figure(
        "images per second of all, each asked directly",
        sum(each.images_per_second for each in directly),
        "-",
    )
    figure("images per second through Envoy", together.images_per_second, "-")
    figure("CPUs in use by the replicas meanwhile", together.cpus, "-")
    share = together.images_per_second / expected
    figure("through Envoy, share of what there is room for", share, ">= 0.85")
    assert share >= 0.85
