"""How far a step is filled up with those who come after the ones that it serves.

More rows use the network better, and make the step longer for those who are served.
"""

import math

import numpy as np
import numpy.typing as npt

from serving.pace import Pace

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

LIKE_SIZE = 4
"""Requests are of like size if neither has more than this many times the other's work."""

LEAST_STRETCH = 1.1
STRETCH_PER_SHARE = 6.0
"""A step takes up to LEAST_STRETCH + this * s times as long with those that fill it up as without
them, where s is the share of one worker's time that goes into steps which are kept short in this
way. So small requests that are few hardly wait for large ones, and many of them leave these their
pace; measured on two cores (docs/promises.md). Of several workers, all but one may keep all their
steps short before that counts: the large requests have the rest."""

MEMORY_SECONDS = 10.0
"""Of the engine's work, over which that share is a fading mean."""

EFFICIENCY = 0.93
"""Rows per second, relative to those of a full batch, beyond which a step is not filled up."""

EXPECTED_SECONDS = 60.0
"""Of the engine's work, for which more small requests are expected after one has come. Meanwhile
the steps of large ones have no more rows than EFFICIENCY asks for: whoever comes waits for the end
of one."""


class FillingUp:
    """How far the steps of an engine are filled up. One thread writes, any may ask for rows()."""

    def __init__(self, pace: Pace, workers: int = 1) -> None:
        """For an engine that goes at this pace, and has kept no step short yet.

        Args:
            pace: of steps that all workers make side by side.
            workers: who share the rows of such a step equally.
        """
        self._pace = pace
        self._workers = workers
        self._short_share = 0.0
        self._seconds_since_short = math.inf
        self._small_size = math.inf

    @property
    def stretch(self) -> float:
        """How many times as long a step may take with those that fill it up."""
        short_workers = self._workers * self._short_share
        return LEAST_STRETCH + STRETCH_PER_SHARE * max(0.0, short_workers - (self._workers - 1))

    def observe(self, seconds: float, *, kept_short: bool) -> None:
        """Takes note of a worker's step, and whether limit() took lanes away from it."""
        new = 1.0 - math.exp(-seconds / (self._workers * MEMORY_SECONDS))
        self._short_share += new * (kept_short - self._short_share)
        since = self._seconds_since_short + seconds / self._workers
        self._seconds_since_short = 0.0 if kept_short else since

    def expected(self, size: int) -> bool:
        """Whether small requests have come lately to which one of `size` rows is a large one."""
        lately = self._seconds_since_short <= EXPECTED_SECONDS
        return lately and size > LIKE_SIZE * self._small_size

    def ready_lanes(self, rows_per_lane: float, lanes: int) -> int:
        """Lanes of a worker in steps of large requests while small ones are expected.

        Args:
            rows_per_lane: of a step.
            lanes: that the worker has.
        """
        cost = self._pace.cost
        if cost is None:
            return lanes
        most_rows = self._workers * lanes * rows_per_lane
        rows = cost.efficient_rows(1.0, most_rows, EFFICIENCY)
        return min(math.ceil(rows / (self._workers * rows_per_lane)), lanes)

    def rows(self, served_rows: float, most_rows: float) -> float:
        """Rows up to which a step is filled up; `most_rows` before any step was timed.

        Args:
            served_rows: of the requests that go first.
            most_rows: of a full batch.
        """
        cost = self._pace.cost
        if cost is None:
            return most_rows
        within = cost.rows_within(self.stretch * cost.seconds(served_rows))
        efficient = cost.efficient_rows(served_rows, most_rows, EFFICIENCY)
        # What the network would only pad is for nothing.
        free = cost.rows_within(cost.seconds(served_rows))
        return max(served_rows, min(max(free, min(within, efficient)), most_rows))

    def limit(
        self,
        given: Int64Array,
        fills: BoolArray,
        rows_per_lane: Float64Array,
        lanes: int,
        small_size: int,
    ) -> bool:
        """Takes lanes from requests that only fill up, as far as they slow the others down.

        Args:
            given: int64 [requests], lanes of each with a worker, the most urgent first; changed in
                place.
            fills: bool [requests], which of them only fill up.
            rows_per_lane: float64 [requests], of a step.
            lanes: that the worker has.
            small_size: rows of the smallest of those that go first.

        Returns:
            whether it took any.
        """
        if not given[fills].any():
            return False
        rows = given * rows_per_lane
        served_rows = float(rows[~fills].sum())
        workers = self._workers
        room = self.rows(workers * served_rows, workers * lanes) / workers - served_rows
        rows[~fills] = 0.0
        allowed = np.floor(np.maximum(room - (np.cumsum(rows) - rows), 0.0) / rows_per_lane)
        kept_short = bool((allowed < given)[fills].any())
        np.minimum(given, allowed.astype(np.int64), out=given, where=fills)
        if kept_short:
            self._small_size = small_size
        return kept_short
