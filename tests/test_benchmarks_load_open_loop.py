"""The open loop: requests go out at their times, and latency counts from these times."""

import asyncio

import numpy as np
import pytest

from benchmarks.load.arrivals import Kind
from benchmarks.load.open_loop import Failed, Record, Refused, Send, run

SMALL = Kind(1.0, 1, 10)


class FakeTime:
    """A clock that moves only when something sleeps on it."""

    def __init__(self) -> None:
        self.now = 100.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        done = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, done))
        await done

    async def advance(self, running: asyncio.Task[list[Record]]) -> list[Record]:
        """Wakes whoever is next, until the run is over."""
        while not running.done():
            for _ in range(20):  # lets everything that can go on go on
                await asyncio.sleep(0)
            self._sleepers = [each for each in self._sleepers if not each[1].done()]
            if running.done():
                break
            assert self._sleepers, "nobody will ever wake up"
            at, done = min(self._sleepers, key=lambda each: each[0])
            self.now = max(self.now, at)
            done.set_result(None)
        return running.result()


async def run_at(time: FakeTime, at_seconds: list[float], send: Send) -> list[Record]:
    kinds = [SMALL] * len(at_seconds)
    running = asyncio.ensure_future(
        run(np.array(at_seconds), kinds, send, drain_seconds=60.0, clock=time, sleep=time.sleep)
    )
    return await time.advance(running)


async def test_requests_are_sent_at_their_times_whatever_became_of_those_before() -> None:
    time, sent = FakeTime(), []

    async def send(i: int, _: Kind) -> None:
        sent.append((i, time() - 100.0))
        await time.sleep(7.0)

    records = await run_at(time, [0.0, 1.0, 1.5], send)
    assert sent == [(0, 0.0), (1, 1.0), (2, 1.5)]
    assert [record.latency_seconds for record in records] == [7.0, 7.0, 7.0]


async def test_the_wait_for_a_late_generator_is_part_of_the_latency() -> None:
    """Coordinated omission would count from when the request was sent."""
    time = FakeTime()

    async def send(i: int, _: Kind) -> None:
        if i == 0:
            time.now += 10.0  # holds the whole generator up
        await time.sleep(1.0)

    records = await run_at(time, [0.0, 2.0, 3.0], send)
    assert [record.sent_seconds for record in records] == [0.0, 10.0, 10.0]
    assert [record.latency_seconds for record in records] == [11.0, 9.0, 8.0]


async def test_every_request_has_its_one_status() -> None:
    time = FakeTime()

    async def send(i: int, _: Kind) -> None:
        if i == 1:
            raise Refused
        if i == 2:
            raise Failed
        await time.sleep(1.0 if i == 0 else 1000.0)

    records = await run_at(time, [0.0, 0.0, 0.0, 0.0], send)
    assert [record.status for record in records] == ["ok", "refused", "failed", "unfinished"]
    assert records[3].latency_seconds == 60.0, "what it had waited when it was given up"


async def test_a_mistake_in_the_generator_is_no_answer_of_the_target() -> None:
    async def send(i: int, _: Kind) -> None:
        raise KeyError(i)

    with pytest.raises(KeyError):
        await run_at(FakeTime(), [0.0], send)


async def test_no_requests_are_no_records() -> None:
    assert await run_at(FakeTime(), [], lambda *_: pytest.fail("nothing to send")) == []
