"""Open loop: every request is sent at its time, whatever became of those before it.

Latency is counted from the time at which a request should have been sent, not from when it was:
if the generator or the target falls behind, the wait is part of what is measured ("coordinated
omission" leaves it out).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from benchmarks.load.arrivals import Kind, Seconds

Status = Literal["ok", "refused", "failed", "unfinished"]


class Refused(Exception):
    """The target answered that it has no room."""


class Failed(Exception):
    """The target did not draw what was asked for; the message is one line."""


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one request.

    Attributes:
        kind: what it asked for.
        scheduled_seconds: when it was to be sent, from the start of the schedule.
        sent_seconds: when it was.
        done_seconds: when its answer was there, or it was given up.
        status: how it ended; unfinished if it was given up at the end of the run.
    """

    kind: Kind
    scheduled_seconds: float
    sent_seconds: float
    done_seconds: float
    status: Status

    @property
    def latency_seconds(self) -> float:
        """From the scheduled time on; of an unfinished request, what it is at least."""
        return self.done_seconds - self.scheduled_seconds


Send = Callable[[int, Kind], Awaitable[None]]
"""Sends request number i of a kind; raises Refused or Failed."""

_T = TypeVar("_T")


async def run(
    at_seconds: Seconds,
    kinds: Sequence[Kind],
    send: Send,
    *,
    drain_seconds: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> list[Record]:
    """Sends every request at its time and waits for the answers.

    Args:
        at_seconds: when each is sent, ascending, from the start.
        kinds: what each asks for.
        send: sends one and waits for its answer.
        drain_seconds: how long to wait for answers after the last was sent.
        clock: seconds, monotonic.
        sleep: waits for some seconds of that clock.

    Returns:
        A record of every request, in their order.
    """
    start = clock()
    records: list[Record | None] = [None] * len(kinds)
    sent: list[float] = []

    async def one(i: int, kind: Kind) -> None:
        sent_seconds = sent[i]
        status: Status = "ok"
        try:
            await send(i, kind)
        except Refused:
            status = "refused"
        except Failed:
            status = "failed"
        except asyncio.CancelledError:
            status = "unfinished"
        records[i] = Record(kind, float(at_seconds[i]), sent_seconds, clock() - start, status)

    tasks: list[asyncio.Task[None]] = []
    for i, kind in enumerate(kinds):
        wait_seconds = float(at_seconds[i]) - (clock() - start)
        if wait_seconds > 0:
            await sleep(wait_seconds)
        sent.append(clock() - start)
        tasks.append(asyncio.create_task(one(i, kind)))
    if not tasks:
        return []
    drain = asyncio.ensure_future(_as_coroutine(sleep(drain_seconds)))
    answered = asyncio.ensure_future(asyncio.wait(tasks))
    await asyncio.wait({drain, answered}, return_when=asyncio.FIRST_COMPLETED)
    for task in (drain, *tasks):
        task.cancel()
    ended = await asyncio.gather(*tasks, drain, answered, return_exceptions=True)
    for error in ended[: len(tasks)]:
        if isinstance(error, Exception):
            raise error  # a mistake in `send`, not an answer of the target
    # A task that was cancelled before it ran at all has no record of its own.
    end = clock() - start
    return [
        record or Record(kind, float(at_seconds[i]), sent[i], end, "unfinished")
        for i, (record, kind) in enumerate(zip(records, kinds, strict=True))
    ]


async def _as_coroutine(awaitable: Awaitable[_T]) -> _T:
    return await awaitable
