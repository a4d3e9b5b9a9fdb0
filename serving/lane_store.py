"""Lanes that are set aside: an image and a few numbers each, until it is their turn again."""

import numpy as np

from serving.lanes import BoolArray, Int64Array, LaneTable

_SMALLEST = 16


class LaneStore:
    """A lane table that grows as needed, and gives its memory back when it is empty.

    Attributes:
        lanes: the table, to read.
    """

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        self._image_shape = image_shape
        self.lanes = LaneTable(_SMALLEST, image_shape)

    def put(self, source: LaneTable, which: BoolArray) -> None:
        """Moves the lanes marked in `which` [source.count] here."""
        moving = np.flatnonzero(which)
        if moving.size > self.lanes.free:
            smaller, needed = self.lanes, self.lanes.count + moving.size
            self.lanes = LaneTable(2 * needed, self._image_shape)
            self.lanes.receive(smaller, np.arange(smaller.count))
        self.lanes.receive(source, moving)
        source.leave(which)

    def take(self, target: LaneTable, request: int, lanes: int) -> int:
        """Moves up to `lanes` lanes of a request back, the furthest first; returns how many."""
        count = self.lanes.count
        mine = np.flatnonzero(self.lanes.request[:count] == request)
        steps_left = self.lanes.num_steps[mine] - self.lanes.position[mine]
        moving: Int64Array = mine[np.argsort(steps_left, kind="stable")[:lanes]]
        target.receive(self.lanes, moving)
        leaving = np.zeros(count, dtype=np.bool_)
        leaving[moving] = True
        self._leave(leaving)
        return moving.size

    def drop(self, ended: BoolArray) -> int:
        """Frees the lanes of requests marked in `ended` [slots]; returns their rows_computed."""
        if not self.lanes.count:
            return 0
        return self._leave(ended[self.lanes.request[: self.lanes.count]])

    def _leave(self, leaving: BoolArray) -> int:
        rows_computed = self.lanes.leave(leaving)
        if self.lanes.count == 0 and self.lanes.capacity > _SMALLEST:
            self.lanes = LaneTable(_SMALLEST, self._image_shape)
        return rows_computed
