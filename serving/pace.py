"""What an engine step costs: timed at start-up by its rows, then followed as steps are made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

_MEMORY = 0.98
"""Weight that the past keeps at each new step: about the last 50 steps count."""

_ROUNDING = 1e-9  # relative


@dataclass(frozen=True, slots=True, eq=False)
class StepCost:
    """The cost of an engine step as a function of its network rows.

    Args:
        by_rows: float64 [R + 1], of steps of 0, 1 .. R rows; does not fall. R is at least 1.
        scale: seconds of one unit of by_rows, above 0.
    """

    by_rows: Float64Array
    scale: float = 1.0

    def seconds(self, rows: float) -> float:
        """That a step of `rows` takes. Beyond R rows each costs as much as those before."""
        most = len(self.by_rows) - 1
        if rows >= most:
            return self.scale * float(self.by_rows[most]) * rows / most
        whole = int(rows)
        low, high = self.by_rows[whole : whole + 2].tolist()
        return self.scale * float(low + (rows - whole) * (high - low))

    def rows_within(self, seconds: float) -> int:
        """That a step of `seconds` has room for, of R at most."""
        units = seconds * (1.0 + _ROUNDING) / self.scale
        return int(self.by_rows.searchsorted(units, side="right")) - 1

    def efficient_rows(self, fewest: float, most: float, efficiency: float) -> int:
        """The least rows from `fewest` on that reach a share of the rows per second of `most`."""
        rows = np.arange(int(np.ceil(fewest)), min(int(most), len(self.by_rows) - 1) + 1)
        if not rows.size:
            return int(most)
        rates = rows / self.by_rows[rows]
        return int(rows[np.argmax(rates >= efficiency * (1.0 - _ROUNDING) * rates[-1])])


class Pace:
    """How steps of different sizes compare, from start-up, and how long they take at present.

    What was timed at start-up keeps its shape: steps in service are mostly of one size, from which
    that of others cannot be told, and the few that are held up would bend any line through them.

    One thread writes, any thread may read `cost`.
    """

    def __init__(
        self,
        most_rows: int,
        timed: Mapping[int, float] | None = None,
        padded_rows: Callable[[int], int] = lambda rows: rows,
    ) -> None:
        """Starts with what was timed; without, a step's cost is in proportion to its rows.

        Args:
            most_rows: of a step, at least 1.
            timed: seconds of a step by its rows.
            padded_rows: rows that are computed for a batch.
        """
        self._by_rows = _by_rows(most_rows, timed or {1: 1.0}, padded_rows)
        self._sums = np.zeros(3)  # rows, seconds, what by_rows says that these rows take
        self._cost: StepCost | None = None
        for rows, seconds in (timed or {}).items():
            self.observe(rows, seconds)

    @property
    def cost(self) -> StepCost | None:
        """What a step costs; None before the first."""
        return self._cost

    @property
    def seconds_per_row(self) -> float | None:
        """Mean of the latest steps; None before the first."""
        rows, seconds, _ = self._sums.tolist()
        return seconds / rows if rows else None

    def observe(self, rows: int, seconds: float) -> None:
        """Takes note of an engine step that made a batch; one that took no time is passed over."""
        if rows <= 0 or seconds <= 0.0:
            return
        self._sums *= _MEMORY
        self._sums += (rows, seconds, StepCost(self._by_rows).seconds(rows))
        self._cost = StepCost(self._by_rows, float(self._sums[1] / self._sums[2]))


def _by_rows(
    most_rows: int, timed: Mapping[int, float], padded_rows: Callable[[int], int]
) -> Float64Array:
    """Seconds of steps of 0 .. most_rows rows, float64 [most_rows + 1]."""
    sizes = sorted(timed)
    seconds = np.array([timed[rows] for rows in sizes])
    # A moment in which the machine was busy makes a size look slow, never one quick.
    seconds = np.minimum.accumulate(seconds[::-1])[::-1]
    padded = np.array([0] + [padded_rows(rows) for rows in range(1, most_rows + 1)])
    within = np.interp(padded, [0, *sizes], [0.0, *seconds])
    beyond = seconds[-1] / sizes[-1] * padded
    return np.maximum.accumulate(np.where(padded > sizes[-1], beyond, within))
