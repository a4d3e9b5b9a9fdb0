"""Who was passed over for too long, and what it is owed: so that no large request starves."""

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

AGEING = 0.25
"""Share that the elder, the request which was passed over for too long, has at least of what later
ones and it are served."""


class Ageing:
    """The elder: the first of those that later ones have passed by work left / share rows or more.

    From then on it is owed share / (1 - share) rows for every one that later ones are served, up to
    a step, and goes first when these make a full one. So a small request waits for a step of it at
    most, however long it was passed over.

    Attributes:
        elder: its slot; None if nobody was passed over for too long.
    """

    def __init__(self, slots: int, share: float) -> None:
        """Nobody was passed over yet.

        Args:
            slots: requests that there is room for.
            share: of what later ones and it are served, in 0..1; with 0 nobody ages.

        Raises:
            ValueError: if share is out of range.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"ageing must be in 0..1, got {share}")
        self._share = share
        self._passed_by: Int64Array = np.zeros(slots, dtype=np.int64)
        self._owed = 0.0
        self._full_step = 1
        self.elder: int | None = None

    def enter(self, slot: int) -> None:
        """A request has come."""
        self._passed_by[slot] = 0

    def choose(
        self,
        slots: Int64Array,
        wants: BoolArray,
        order: Int64Array,
        work_left: Int64Array,
        lanes: int,
    ) -> None:
        """Decides who the elder is.

        Args:
            slots: int64 [N], of the requests that are here.
            wants: bool [N], which of them have fewer lanes than images.
            order: int64 [slots], lower came first.
            work_left: int64 [slots], rows that each still needs.
            lanes: of a full step.
        """
        self._full_step = lanes
        if not self._share:
            return
        too_long = self._share * self._passed_by[slots] >= work_left[slots]
        eligible = slots[wants & too_long]
        elder = int(eligible[order[eligible].argmin()]) if eligible.size else None
        if elder != self.elder:
            self.elder, self._owed = elder, 0.0

    def is_owed_a_step(self, lanes: int) -> bool:
        """Whether there is an elder that is owed a step of so many lanes."""
        return self.elder is not None and self._owed >= self._share * lanes

    def served(
        self, slots: Int64Array, rows: Int64Array, order: Int64Array, here: Int64Array
    ) -> None:
        """A step is made: `rows` of the network for a lane of each of `slots` (repeated).

        Args:
            slots: int64 [lanes].
            rows: int64 [lanes].
            order: int64 [slots], lower came first.
            here: int64 [N], slots of the requests that are here.
        """
        if not self._share:
            return
        orders = order[slots]
        if self.elder is not None:
            passed_by = int(rows[orders > order[self.elder]].sum())
            its_own = int(rows[slots == self.elder].sum())
            owed = self._share * passed_by - (1.0 - self._share) * its_own
            self._owed = min(max(self._owed + owed, 0.0), self._share * self._full_step)
        by_order = orders.argsort()
        rows_until = np.concatenate(([0], np.cumsum(rows[by_order])))
        earlier = orders[by_order].searchsorted(order[here], side="right")
        self._passed_by[here] += rows_until[-1] - rows_until[earlier]
