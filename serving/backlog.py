"""The requests of an engine at one moment, as far as an estimate needs them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Backlog:
    """The requests of an engine at one moment.

    Attributes:
        urgency: int64 [requests], lower goes first.
        size: int64 [requests], network rows that each needs in all.
        work: int64 [requests], network rows that each still needs.
        width: float64 [requests], rows that each can use in a step.
        images: that are not finished.
        images_waiting: of these, without a lane.
        requests_waiting: that have not had a lane yet.
        elder: its place in these arrays; None if nobody was passed over for too long.
    """

    urgency: Int64Array
    size: Int64Array
    work: Int64Array
    width: Float64Array
    images: int
    images_waiting: int
    requests_waiting: int
    elder: int | None = None


_NONE = np.zeros(0, dtype=np.int64)
EMPTY_BACKLOG = Backlog(_NONE, _NONE, _NONE, np.zeros(0), 0, 0, 0)
