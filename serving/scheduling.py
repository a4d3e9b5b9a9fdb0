"""Who runs next: at every engine step, how many lanes each request has.

Work is counted in network rows, as the plan of a request says (GenerateSpec.work_per_image).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from serving.filling_up import FillingUp

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

SchedulingPolicy = Literal["srpt", "fifo"]
"""srpt: shortest remaining work (processing time) first, with ageing. fifo: as they came."""

AGEING = 0.5
"""Share of the engine that the request which was passed over longest can count on."""

REVIEW_STEPS = 4
"""Steps after which the lanes are given out anew, if nothing that matters happens before and no
request is without any."""

LIKE_SIZE = 4
"""Requests are of like size if neither has more than this many times the other's work."""


@dataclass(frozen=True, slots=True, eq=False)
class Backlog:
    """The requests of an engine at one moment.

    Attributes:
        urgency: float64 [requests], lower goes first.
        size: int64 [requests], network rows that each needs in all.
        work: int64 [requests], network rows that each still needs.
        width: float64 [requests], rows that each can use in a step.
        images: that are not finished.
        images_waiting: of these, without a lane.
        requests_waiting: that have not had a lane yet.
    """

    urgency: Float64Array
    size: Int64Array
    work: Int64Array
    width: Float64Array
    images: int
    images_waiting: int
    requests_waiting: int


_NONE = np.zeros(0, dtype=np.int64)
EMPTY_BACKLOG = Backlog(np.zeros(0), _NONE, _NONE, np.zeros(0), 0, 0, 0)


class WorkQueue:
    """Requests by slot, in the order in which they are served.

    With srpt that is the shortest remaining work first, with ageing. The clock of ageing is the
    engine's own work: while it does R rows, each request gains ageing * R rows of credit, and the
    least (remaining work - credit) goes first; being served costs 2 / ageing times the rows in
    credited time, never more than there is. So a request is passed by no smaller one that came
    remaining / ageing rows later, and gets at least the share `ageing` of the engine from then on;
    and a request that is being served gathers no credit with which to hold up a small one. Equals
    go in the order in which they came.

    A lane is set aside only where a much smaller request waits (LIKE_SIZE); others get the lanes
    that come free, so that requests of like size do not take turns at every step.

    Requests are served whole as far as there are lanes. A much larger one that fills up the rest
    slows those before it down, as more rows take longer. So it gets no more than makes good use of
    the network, and bearable steps (serving.filling_up).

    Attributes:
        waiting: int64 [slots], images that have had no lane yet.
        unfinished: int64 [slots], images that are not finished: waiting, running or set aside.
        work_left: int64 [slots], rows that these still need.
        deadline_seconds: float64 [slots], infinity for none.
        keeps_short: whether the last allotment left out lanes so that steps are short.
    """

    def __init__(
        self, slots: int, *, policy: SchedulingPolicy = "srpt", ageing: float = AGEING
    ) -> None:
        """`ageing` in 0..1; with 0 a large request can starve."""
        if policy not in get_args(SchedulingPolicy):
            raise ValueError(f"policy must be srpt or fifo, got {policy!r}")
        if not 0.0 <= ageing <= 1.0:
            raise ValueError(f"ageing must be in 0..1, got {ageing}")
        self._fifo = policy == "fifo"
        self._ageing = ageing
        self._work_done = 0
        self._steps_until_review = 0
        self.keeps_short = False
        self._free_slots = list(range(slots - 1, -1, -1))
        self._order: Int64Array = np.zeros(slots, dtype=np.int64)
        self._aged_since: Float64Array = np.zeros(slots, dtype=np.float64)
        self._work: Int64Array = np.zeros(slots, dtype=np.int64)
        self._images: Int64Array = np.zeros(slots, dtype=np.int64)
        self._rows_per_lane: Float64Array = np.ones(slots, dtype=np.float64)
        self.waiting: Int64Array = np.zeros(slots, dtype=np.int64)
        self.unfinished: Int64Array = np.zeros(slots, dtype=np.int64)
        self.work_left: Int64Array = np.zeros(slots, dtype=np.int64)
        self.deadline_seconds: Float64Array = np.full(slots, np.inf)

    @property
    def slots(self) -> int:
        """Requests that there is room for."""
        return len(self.waiting)

    def add(
        self, order: int, images: int, image_work: int, num_steps: int, deadline_seconds: float
    ) -> int:
        """Enters a request and returns its slot.

        Args:
            order: tells equals apart: lower goes first.
            images: wanted.
            image_work: rows that one image takes in all its steps.
            num_steps: steps of an image.
            deadline_seconds: infinity for none.
        """
        slot = self._free_slots.pop()
        self._steps_until_review = 0
        self._order[slot] = order
        self._aged_since[slot] = self._work_done
        self._work[slot] = self.work_left[slot] = images * image_work
        self._images[slot] = self.waiting[slot] = self.unfinished[slot] = images
        self._rows_per_lane[slot] = image_work / num_steps
        self.deadline_seconds[slot] = deadline_seconds
        return slot

    def withdraw(self, slot: int) -> None:
        """Nothing of this request is to be served or timed any more."""
        self._steps_until_review = 0
        self.waiting[slot] = self.unfinished[slot] = self.work_left[slot] = 0
        self.deadline_seconds[slot] = np.inf

    def free(self, slot: int) -> None:
        """Gives the slot of a withdrawn request to whoever comes next."""
        self._free_slots.append(slot)

    def expired(self, now_seconds: float) -> Int64Array:
        """Slots whose deadline has come, int64."""
        return (self.deadline_seconds <= now_seconds).nonzero()[0]

    def served(self, slots: Int64Array, rows: Int64Array) -> None:
        """A step has been made: `rows` of the network for a lane of each of `slots` (repeated)."""
        self._steps_until_review -= 1
        np.subtract.at(self.work_left, slots, rows)
        self._work_done += int(rows.sum())
        if self._ageing:
            np.add.at(self._aged_since, slots, rows * (2.0 / self._ageing))
            self._aged_since[slots] = np.minimum(self._aged_since[slots], self._work_done)

    def finished(self, slots: Int64Array) -> None:
        """An image of each of `slots` (repeated) is finished."""
        self._steps_until_review = 0
        np.subtract.at(self.unfinished, slots, 1)

    @property
    def due(self) -> bool:
        """Whether it is time to allot: a request came or ended, a lane is free, or time went by."""
        return self._steps_until_review <= 0

    def forgo(self, slot: int, rows: int) -> None:
        """An image of a request needs no lane of its own, nor the `rows` that it still needed."""
        self._steps_until_review = 0
        self.unfinished[slot] -= 1
        self.work_left[slot] -= rows

    def take_up(self, slot: int, rows: int) -> None:
        """The contrary: a request has a lane more, which still needs `rows`."""
        self._steps_until_review = 0
        self.unfinished[slot] += 1
        self.work_left[slot] += rows

    def allot(
        self, held: Int64Array, lanes: int, filling_up: FillingUp
    ) -> tuple[Int64Array, Int64Array]:
        """How many lanes each request has in the next step.

        Args:
            held: int64 [slots], lanes that each request has had in the last.
            lanes: that there are.
            filling_up: how far a step is.

        Returns:
            (slots, lanes), int64 [N] each; a request that is not named has none.
        """
        self._steps_until_review = REVIEW_STEPS
        self.keeps_short = False
        slots = self.unfinished.nonzero()[0]
        if slots.size <= 1:
            return slots, np.minimum(self.unfinished[slots], lanes)
        ranked = self._ranked(slots, held, lanes)
        wanted, kept = self.unfinished[ranked], self._kept(ranked, held)
        more = wanted - kept
        free = lanes - int(kept.sum())
        given: Int64Array = kept + np.clip(free - (np.cumsum(more) - more), 0, more)
        if not self._fifo:
            fills = self._work[ranked] > LIKE_SIZE * self._work[ranked[0]]
            self.keeps_short = filling_up.limit(given, fills, self._rows_per_lane[ranked], lanes)
        if not given.all():
            self._steps_until_review = 1
        return ranked, given

    def backlog(self, images_running: int, images_shared: int = 0) -> Backlog:
        """What is here, with so many of the images in lanes, and others that await one of those."""
        slots = self.unfinished.nonzero()[0]
        images = int(self.unfinished[slots].sum()) + images_shared
        return Backlog(
            urgency=self._urgency(slots),
            size=self._work[slots],
            work=self.work_left[slots],
            width=self.unfinished[slots] * self._rows_per_lane[slots],
            images=images,
            images_waiting=images - images_running,
            requests_waiting=int(np.count_nonzero(self.waiting[slots] == self._images[slots])),
        )

    def _urgency(self, slots: Int64Array) -> Float64Array:
        if self._fifo:
            return self._order[slots].astype(np.float64)
        credit = self._ageing * (self._work_done - self._aged_since[slots])
        urgency: Float64Array = self.work_left[slots] - credit
        return urgency

    def _ranked(self, slots: Int64Array, held: Int64Array, lanes: int) -> Int64Array:
        """The slots that have or can have lanes, the most urgent first."""
        urgency = self._urgency(slots)
        if slots.size > 4 * lanes:  # each takes a lane at least: sort those that can win, and ties
            able = urgency <= np.partition(urgency, lanes - 1)[lanes - 1]
            able |= held[slots] > 0
            slots, urgency = slots[able], urgency[able]
        ranked: Int64Array = slots[np.lexsort((self._order[slots], urgency))]
        return ranked

    def _kept(self, ranked: Int64Array, held: Int64Array) -> Int64Array:
        """Lanes that are not set aside, whoever is more urgent: no much smaller request waits."""
        has = held[ranked]
        waits = self.unfinished[ranked] > has
        if not waits.any():
            return has
        size = self._work[ranked]
        kept: Int64Array = np.where(size <= LIKE_SIZE * size[waits].min(), has, 0)
        return kept
