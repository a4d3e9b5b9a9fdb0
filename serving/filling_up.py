"""How far a step is filled up with those who come after the ones that it serves.

More rows use the network better, and make the step longer for those who are served.
"""

import numpy as np
import numpy.typing as npt

from serving.pace import StepCost

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

FILLER_STRETCH = 2.6
"""How much longer a step may take with those that fill it up than without them. With 2 a large
request keeps too little of its pace beside small ones, with 4 small ones wait too long; measured
on two cores (docs/promises.md)."""

FILLER_EFFICIENCY = 0.9
"""Rows per second, relative to those of a full batch, beyond which a step is not filled up."""


def filled_up_rows(cost: StepCost, served_rows: float, most_rows: float) -> float:
    """Rows up to which a step that serves `served_rows` is filled up.

    Args:
        cost: of a step.
        served_rows: of the requests that go first.
        most_rows: of a full batch.
    """
    within = cost.rows_within(FILLER_STRETCH * cost.seconds(served_rows))
    # rows / seconds(rows) = pace, solved for rows.
    pace = FILLER_EFFICIENCY * most_rows / cost.seconds(most_rows)
    efficient = pace * cost.fixed_seconds / (1.0 - pace * cost.seconds_per_row)
    return max(served_rows, min(within, efficient, most_rows))


def limit_fillers(
    given: Int64Array, fills: BoolArray, rows_per_lane: Float64Array, lanes: int, cost: StepCost
) -> None:
    """Takes lanes from requests that only fill up, as far as they slow the others down.

    Args:
        given: int64 [requests], lanes of each, the most urgent first; changed in place.
        fills: bool [requests], which of them only fill up.
        rows_per_lane: float64 [requests], of a step.
        lanes: that there are.
        cost: of a step.
    """
    if not fills.any():
        return
    rows = given * rows_per_lane
    served_rows = float(rows[~fills].sum())
    room = filled_up_rows(cost, served_rows, lanes) - served_rows
    rows[~fills] = 0.0
    allowed = np.floor(np.maximum(room - (np.cumsum(rows) - rows), 0.0) / rows_per_lane)
    np.minimum(given, allowed.astype(np.int64), out=given, where=fills)
