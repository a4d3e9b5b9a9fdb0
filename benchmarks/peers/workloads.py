"""What every peer goes through: the proof that it draws the same, and three workloads."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.load import arrivals, open_loop, summary
from benchmarks.load.__main__ import send_all
from benchmarks.load.arrivals import Kind
from benchmarks.load.targets import Target
from benchmarks.peers.drawing import Drawing, Pixels
from benchmarks.peers.processes import Running

SMALL = Kind(0.9, 1, 10)
LARGE = Kind(0.1, 64, 250)
MIXTURE = (SMALL, LARGE)
LOAD = 0.8
"""Of a capacity: what is offered in the mixed workload."""

BURST_LOAD = 0.5
_WARM_SHARE = 0.25  # of a turn, before anything counts
_ANSWERS_EACH = 4  # that a caller has in a turn, on average, at least
_LONGEST_TURN = 10.0  # times as long as it should be, for whoever is that slow


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long everything takes.

    Attributes:
        rounds: turns of each peer at saturation.
        turn_seconds: of each.
        outstanding: requests for one image that are on their way to a server at saturation.
        loop_batch: images of one call of a loop at saturation: nobody makes batches for it.
        unloaded_requests: small ones, one after the other, on an idle server.
        mixed: the mixture.
        mixed_requests: of each peer.
        drain_seconds: to wait for answers after the last request; what is not there by then has
            waited for at least as long.
        bursts: of each peer.
        burst_size: small requests of each burst.
    """

    rounds: int = 5
    turn_seconds: float = 6.0
    outstanding: int = 192
    loop_batch: int = 64
    unloaded_requests: int = 25
    mixed: arrivals.Mixture = MIXTURE
    mixed_requests: int = 40
    drain_seconds: float = 45.0
    bursts: int = 8
    burst_size: int = 64


QUICK = Sizes(1, 1.0, 8, 16, 2, (SMALL, Kind(0.1, 4, 10)), 10, 5.0, 1, 8)


def compare(images: Pixels, ours: Pixels) -> dict[str, float]:
    """How far images are from ours, which were drawn from the same noise."""
    difference = np.abs(images.astype(np.int16) - ours.astype(np.int16))
    return {
        "largest": int(difference.max()),
        "mean": float(difference.mean()),
        "share_within_1": float((difference <= 1).mean()),
    }


async def unloaded_seconds(target: Target, requests: int) -> list[float]:
    """Latencies of small requests that are alone on the server, one after the other."""
    latencies = []
    for i in range(requests):
        begin = time.perf_counter()
        await target.draw(Drawing(i % 10, SMALL.count, SMALL.num_steps, i))
        latencies.append(time.perf_counter() - begin)
    return latencies


async def saturation_rows_per_second(running: Running, sizes: Sizes, seed: int) -> float:
    """Network rows per second while there is always more to do than fits into a batch.

    A server gets requests for one image from as many callers as it could want; a loop gets full
    batches. What counts is what is finished between two answers within the turn, which lasts until
    every caller had some: of two or three batches no rate can be told.
    """
    is_loop = running.peer.protocol == "process"
    count, outstanding = (sizes.loop_batch, 2) if is_loop else (SMALL.count, sizes.outstanding)
    begin = time.perf_counter()
    done: list[tuple[float, int]] = []
    numbers = iter(range(seed, seed + 10**9))

    def is_over(seconds: float) -> bool:
        enough = len(done) >= _ANSWERS_EACH * outstanding
        return seconds >= sizes.turn_seconds * (1.0 if enough else _LONGEST_TURN)

    async def caller() -> None:
        while not is_over(time.perf_counter() - begin):
            i = next(numbers)
            await running.target.draw(Drawing(i % 10, count, SMALL.num_steps, i))
            done.append((time.perf_counter() - begin, count * SMALL.num_steps))

    await asyncio.gather(*(caller() for _ in range(outstanding)))
    needed = done[min(_ANSWERS_EACH * outstanding, len(done)) - 1][0]
    end_seconds = min(max(sizes.turn_seconds, needed), sizes.turn_seconds * _LONGEST_TURN)
    return steady_rate(done, end_seconds)


def steady_rate(done: Sequence[tuple[float, int]], turn_seconds: float) -> float:
    """Rows per second after the warm-up: the slope of the line through what was done by when.

    Whoever answers a whole batch at once answers in steps: counted from the first answer to the
    last, that would be up to a batch too much.

    Args:
        done: (seconds since the start, rows) of each answer, ascending.
        turn_seconds: after which answers do not count: no new requests follow them.
    """
    within = [each for each in done if _WARM_SHARE * turn_seconds <= each[0] <= turn_seconds]
    if len(within) < 2 or within[-1][0] == within[0][0]:  # slower than the turn is long
        return sum(rows for _, rows in done) / done[-1][0]
    seconds, rows = np.array(within).T
    return float(np.polyfit(seconds, np.cumsum(rows), 1)[0])


async def mixed(target: Target, rows_per_second: float, sizes: Sizes) -> dict[str, Any]:
    """Poisson arrivals of small and large requests that offer so much work."""
    rate = rows_per_second / arrivals.mean_rows(sizes.mixed)
    at_seconds = arrivals.poisson(rate, sizes.mixed_requests, seed=0)
    kinds = arrivals.kinds_in_order(sizes.mixed, sizes.mixed_requests, seed=0)
    records = await send_all(target, at_seconds, kinds, 0, sizes.drain_seconds)
    return _by_kind(records, rate, rows_per_second)


async def bursts(target: Target, rows_per_second: float, sizes: Sizes) -> dict[str, Any]:
    """Small requests that come `burst_size` at once."""
    rate, requests = rows_per_second / SMALL.rows, sizes.bursts * sizes.burst_size
    at_seconds = arrivals.bursts(rate, requests, sizes.burst_size)
    records = await send_all(target, at_seconds, [SMALL] * requests, 0, sizes.drain_seconds)
    return _by_kind(records, rate, rows_per_second)


def _by_kind(
    records: Sequence[open_loop.Record], rate: float, rows_per_second: float
) -> dict[str, Any]:
    bound_seconds = 1.0
    kinds = summary.by_kind(records)
    return {
        "requests_per_second": rate,
        "offered_rows_per_second": rows_per_second,
        "latency_bound_seconds": bound_seconds,
        "kinds": {
            name: summary.as_dict(summary.summarise(of_kind, bound_seconds))
            for name, of_kind in kinds.items()
        },
    }
