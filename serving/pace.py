"""What an engine step costs: seconds = fixed + per row * rows, learned from the steps."""

from dataclasses import dataclass

import numpy as np

_MEMORY = 0.98
"""Weight that the past keeps at each new step: about the last 50 steps count."""

_LEAST_SPREAD = (
    0.05  # of the rows, relative; below it the two parts of the cost cannot be told apart
)
_LEAST_SLOPE = 0.01  # of the mean seconds per row, so that more rows never look free


@dataclass(frozen=True, slots=True)
class StepCost:
    """The cost of an engine step as a function of its network rows.

    Args:
        fixed_seconds: of a step, however few rows it has; 0 or more.
        seconds_per_row: of each row; above 0.
    """

    fixed_seconds: float
    seconds_per_row: float

    def seconds(self, rows: float) -> float:
        """That a step of `rows` takes."""
        return self.fixed_seconds + self.seconds_per_row * rows

    def rows_within(self, seconds: float) -> float:
        """That a step of `seconds` has room for; 0 or more."""
        return max(0.0, (seconds - self.fixed_seconds) / self.seconds_per_row)


class Pace:
    """A line through the latest steps, by least squares, in which older steps fade.

    One thread writes, any thread may read `cost`.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, rows, seconds, rows^2, rows * seconds
        self._cost: StepCost | None = None
        self._mean_rows = self._mean_seconds = 0.0

    @property
    def cost(self) -> StepCost | None:
        """What a step costs; None before the first."""
        return self._cost

    @property
    def seconds_per_row(self) -> float | None:
        """Mean of the latest steps, their fixed part included; None before the first."""
        return self._mean_seconds / self._mean_rows if self._cost is not None else None

    def observe(self, rows: int, seconds: float) -> None:
        """Takes note of an engine step that made a batch; one that took no time is passed over."""
        if rows <= 0 or seconds <= 0.0:
            return
        self._sums *= _MEMORY
        self._sums += (1.0, rows, seconds, rows * rows, rows * seconds)
        n, sum_rows, sum_seconds, sum_squares, sum_products = self._sums.tolist()
        mean_rows, mean_seconds = sum_rows / n, sum_seconds / n
        variance = sum_squares / n - mean_rows * mean_rows
        slope = most = mean_seconds / mean_rows  # through the origin
        if variance > (_LEAST_SPREAD * mean_rows) ** 2:
            slope = (sum_products / n - mean_rows * mean_seconds) / variance
        slope = min(max(slope, _LEAST_SLOPE * most), most)
        self._mean_rows, self._mean_seconds = mean_rows, mean_seconds
        self._cost = StepCost(mean_seconds - slope * mean_rows, slope)
