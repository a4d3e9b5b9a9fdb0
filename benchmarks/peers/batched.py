"""A batch of requests through a loop to its end: what a server with dynamic batching runs."""

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.peers.drawing import Batch, Drawing, Loop, Pixels, Tables

MAX_ROWS = (16, 32, 64)
"""Of one pass through a loop: the peers choose the fastest of these when they start."""


def draw_all(
    loop: Loop, tables: Tables, drawings: Sequence[Drawing], max_rows: int
) -> list[Pixels]:
    """Draws every request of a batch; requests with equal num_steps go through the loop together.

    Args:
        loop: runs a batch to its end.
        tables: of the bundle.
        drawings: the batch, in any mixture.
        max_rows: of one pass through the loop, at least 1.

    Returns:
        uint8 [count, H, W] of each request, in their order.
    """
    images: dict[int, Pixels] = {}
    kinds = sorted({(each.num_steps, each.shared_noise) for each in drawings})
    for kind in kinds:  # those with few steps first
        which = [i for i, d in enumerate(drawings) if (d.num_steps, d.shared_noise) == kind]
        batch, plan = Batch.of([drawings[i] for i in which]), tables.plan(kind[0])
        parts = [
            loop.draw(batch.part(slice(first, first + max_rows)), plan)
            for first in range(0, len(batch), max_rows)
        ]
        ends = np.cumsum([drawings[i].count for i in which])
        images |= dict(zip(which, np.split(np.concatenate(parts), ends[:-1]), strict=True))
    return [images[i] for i in range(len(drawings))]


def best_rows(loop: Loop, tables: Tables, candidates: Sequence[int]) -> int:
    """Of these numbers of rows, the one with the most rows per second; a few seconds of trying.

    Args:
        loop: runs a batch to its end.
        tables: of the bundle.
        candidates: at least one; a single one is not tried.
    """
    if len(candidates) == 1:
        return candidates[0]
    seconds_per_row = {}
    for rows in candidates:
        batch, plan = Batch.of([Drawing(0, rows, 4, 0)]), tables.plan(4)
        loop.draw(batch, plan)  # allocates; compiles for this shape
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            loop.draw(batch, plan)
            times.append(time.perf_counter() - begin)
        seconds_per_row[rows] = min(times) / rows
    return min(seconds_per_row, key=lambda rows: seconds_per_row[rows])
