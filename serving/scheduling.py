"""Who runs next: at every engine step, how many lanes each request has.

Work is counted in network rows, as the plan of a request says (GenerateSpec.work_per_image).
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from serving.ageing import AGEING, Ageing
from serving.backlog import Backlog
from serving.filling_up import LIKE_SIZE, FillingUp

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SchedulingPolicy = Literal["srpt", "fifo"]
"""srpt: shortest remaining work (processing time) first, with ageing. fifo: as they came."""

REVIEW_STEPS = 4
"""Steps after which the lanes are given out anew, if nothing that matters happens before and no
request is without any."""


class WorkQueue:
    """Requests by slot, in the order in which they are served.

    With srpt that is the shortest remaining work first, with ageing (serving.ageing): the elder,
    which was passed over for too long, goes first when it is owed a step.

    A lane is set aside only where a much smaller request waits (LIKE_SIZE); others get the lanes
    that come free, so that requests of like size do not take turns at every step.

    Requests are served whole as far as there are lanes. A much larger one that fills up the rest
    slows those before it down, as more rows take longer. So it gets no more than makes good use of
    the network, and bearable steps (serving.filling_up). Beside it, each worker takes its share of
    the small ones; the elder has its step where none is served, if there is such a worker.

    Attributes:
        waiting: int64 [slots], images that have had no lane yet.
        unfinished: int64 [slots], images that are not finished: waiting, running or set aside.
        work_left: int64 [slots], rows that these still need.
        deadline_seconds: float64 [slots], infinity for none.
        keeps_short: of each worker, whether its last allotment left out lanes so that its steps are
            short.
    """

    def __init__(
        self,
        slots: int,
        *,
        policy: SchedulingPolicy = "srpt",
        ageing: float = AGEING,
        workers: int = 1,
    ) -> None:
        """Makes an empty queue.

        Args:
            slots: requests that there is room for.
            policy: see SchedulingPolicy.
            ageing: in 0..1; with 0 a large request can starve.
            workers: who make steps, each with lanes of its own.
        """
        if policy not in get_args(SchedulingPolicy):
            raise ValueError(f"policy must be srpt or fifo, got {policy!r}")
        self._fifo = policy == "fifo"
        self._ageing = Ageing(slots, ageing)
        self._steps_until_review = [0] * workers
        self.keeps_short = [False] * workers
        self._free_slots = list(range(slots - 1, -1, -1))
        self._order: Int64Array = np.zeros(slots, dtype=np.int64)
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

    @property
    def images(self) -> int:
        """That are not finished, of all requests."""
        return int(self.unfinished.sum())

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
        self.review()
        self._order[slot] = order
        self._ageing.enter(slot)
        self._work[slot] = self.work_left[slot] = images * image_work
        self._images[slot] = self.waiting[slot] = self.unfinished[slot] = images
        self._rows_per_lane[slot] = image_work / num_steps
        self.deadline_seconds[slot] = deadline_seconds
        return slot

    def withdraw(self, slot: int) -> None:
        """Nothing of this request is to be served or timed any more."""
        self.review()
        self.waiting[slot] = self.unfinished[slot] = self.work_left[slot] = 0
        self.deadline_seconds[slot] = np.inf

    def free(self, slot: int) -> None:
        """Gives the slot of a withdrawn request to whoever comes next."""
        self._free_slots.append(slot)

    def expired(self, now_seconds: float) -> Int64Array:
        """Slots whose deadline has come, int64."""
        return (self.deadline_seconds <= now_seconds).nonzero()[0]

    def served(self, slots: Int64Array, rows: Int64Array, worker: int = 0) -> None:
        """A step is made: `rows` of the network for a lane of each of `slots` (repeated)."""
        self._steps_until_review[worker] -= 1
        np.subtract.at(self.work_left, slots, rows)
        if not self._fifo:  # there nobody is passed over
            self._ageing.served(slots, rows, self._order, self.unfinished.nonzero()[0])

    def finished(self, slots: Int64Array) -> None:
        """An image of each of `slots` (repeated) is finished."""
        self.review()
        np.subtract.at(self.unfinished, slots, 1)

    def review(self) -> None:
        """It is time to allot, for every worker."""
        self._steps_until_review = [0] * len(self._steps_until_review)

    def due(self, worker: int = 0) -> bool:
        """Whether it is time to allot: a request came or ended, a lane is free, or time went by."""
        return self._steps_until_review[worker] <= 0

    def forgo(self, slot: int, rows: int) -> None:
        """An image of a request needs no lane of its own, nor the `rows` that it still needed."""
        self.review()
        self.unfinished[slot] -= 1
        self.work_left[slot] -= rows

    def take_up(self, slot: int, rows: int) -> None:
        """The contrary: a request has a lane more, which still needs `rows`."""
        self.review()
        self.unfinished[slot] += 1
        self.work_left[slot] += rows

    def allot(
        self,
        held: Int64Array,
        lanes: int,
        filling_up: FillingUp,
        *,
        elsewhere: Int64Array | None = None,
        worker: int = 0,
    ) -> tuple[Int64Array, Int64Array]:
        """How many lanes of a worker each request has in its next step.

        Args:
            held: int64 [slots], lanes of the worker that each request has had in the last.
            lanes: that the worker has; where it holds more, the least urgent lose some.
            filling_up: how far a step is.
            elsewhere: int64 [slots], lanes of other workers that each request has; None for none.
            worker: whose lanes.

        Returns:
            (slots, lanes), int64 [N] each; a request that is not named has none.
        """
        self._steps_until_review[worker] = REVIEW_STEPS
        self.keeps_short[worker] = False
        wanted = self.unfinished
        if elsewhere is not None:  # lanes of a request that has ended may be under way there
            wanted = np.maximum(wanted - elsewhere, 0)
        slots = wanted.nonzero()[0]
        lanes = self._ready_lanes(slots, lanes, filling_up)
        if not self._fifo:
            wants_more = wanted[slots] > held[slots]
            self._ageing.choose(slots, wants_more, self._order, self.work_left, lanes)
        if slots.size <= 1:
            return slots, np.minimum(wanted[slots], lanes)
        elder_first = self._is_elder_first(slots, lanes, worker)
        ranked = self._ranked(slots, held, lanes, elder_first=elder_first)
        first = int(elder_first)  # the elder is to have its lanes, whatever its size
        fills = self._fills(ranked, first)
        wants = wanted[ranked]
        if fills.any():
            self._share_the_small(ranked[first:], wants[first:], ~fills[first:])
        kept = np.minimum(self._kept(ranked, wanted, held), wants)
        if elder_first:  # a step at once, not the lanes that others leave one by one
            kept[self._order[ranked] > self._order[self._ageing.elder]] = 0
        kept = _within(kept, lanes)
        more = wants - kept
        given = kept + _within(more, lanes - int(kept.sum()))
        if not self._fifo:
            self.keeps_short[worker] = filling_up.limit(
                given, fills, self._rows_per_lane[ranked], lanes, int(self._work[slots].min())
            )
        if not given.all():
            self._steps_until_review[worker] = 1
        return ranked, given

    def _ready_lanes(self, slots: Int64Array, lanes: int, filling_up: FillingUp) -> int:
        """Lanes that are given out: fewer if all are large here, and small ones are expected."""
        if self._fifo or not slots.size:
            return lanes
        smallest = slots[self._work[slots].argmin()]
        if not filling_up.expected(int(self._work[smallest])):
            return lanes
        return filling_up.ready_lanes(float(self._rows_per_lane[smallest]), lanes)

    def _is_elder_first(self, slots: Int64Array, lanes: int, worker: int) -> bool:
        """Whether the elder has a step of this worker at once.

        Not where it would stop much smaller requests for so long while another worker, whose steps
        are not kept short for them, can make its step.
        """
        elder = self._ageing.elder
        if elder is None or not self._ageing.is_owed_a_step(lanes):
            return False
        smallest = int(self._work[slots].min())
        others = [short for i, short in enumerate(self.keeps_short) if i != worker]
        if self._work[elder] <= LIKE_SIZE * smallest or all(others):
            return True
        self._steps_until_review = [0] * len(self.keeps_short)
        return False

    def _fills(self, ranked: Int64Array, first: int) -> BoolArray:
        """Which requests are much larger than the most urgent, and only fill its steps up.

        Args:
            ranked: the most urgent first.
            first: how many of them, at the front, have their lanes whatever their size.
        """
        fills = np.zeros(ranked.size, dtype=np.bool_)
        if not self._fifo:
            sizes = self._work[ranked][first:]
            fills[first:] = sizes > LIKE_SIZE * sizes[:1]
        return fills

    def _share_the_small(self, ranked: Int64Array, wants: Int64Array, small: BoolArray) -> None:
        """Leaves to the other workers their shares of the small requests, in `wants`.

        Two of them in one step take as long as both one after the other, nearly, while another
        worker spends that time on what can wait.
        """
        workers = len(self.keeps_short)
        share = -(-int(self.unfinished[ranked[small]].sum()) // workers)
        wants[small] = _within(wants[small], share)

    def backlog(self, images_running: int, images_shared: int = 0) -> Backlog:
        """What is here, with so many of the images in lanes, and others that await one of those."""
        slots = self.unfinished.nonzero()[0]
        images = int(self.unfinished[slots].sum()) + images_shared
        elder = (slots == self._ageing.elder).nonzero()[0]
        return Backlog(
            urgency=self._urgency(slots),
            size=self._work[slots],
            work=self.work_left[slots],
            width=self.unfinished[slots] * self._rows_per_lane[slots],
            images=images,
            images_waiting=images - images_running,
            requests_waiting=int(np.count_nonzero(self.waiting[slots] == self._images[slots])),
            elder=int(elder[0]) if elder.size else None,
        )

    def _urgency(self, slots: Int64Array) -> Int64Array:
        return (self._order if self._fifo else self.work_left)[slots]

    def _ranked(
        self, slots: Int64Array, held: Int64Array, lanes: int, *, elder_first: bool
    ) -> Int64Array:
        """The slots that have or can have lanes, the most urgent first."""
        urgency = self._urgency(slots)
        if elder_first:
            urgency[slots == self._ageing.elder] = -1
        if slots.size > 4 * lanes:  # each takes a lane at least: sort those that can win, and ties
            able = urgency <= np.partition(urgency, lanes - 1)[lanes - 1]
            able |= held[slots] > 0
            slots, urgency = slots[able], urgency[able]
        ranked: Int64Array = slots[np.lexsort((self._order[slots], urgency))]
        return ranked

    def _kept(self, ranked: Int64Array, wanted: Int64Array, held: Int64Array) -> Int64Array:
        """Lanes that are not set aside, whoever is more urgent: no much smaller request waits."""
        has = held[ranked]
        waits = wanted[ranked] > has
        if not waits.any():
            return has
        size = self._work[ranked]
        kept: Int64Array = np.where(size <= LIKE_SIZE * size[waits].min(), has, 0)
        return kept


def _within(wanted: Int64Array, lanes: int) -> Int64Array:
    """What each gets of so many lanes, the first first."""
    left = lanes - (wanted.cumsum() - wanted)
    given: Int64Array = np.minimum(np.maximum(left, 0), wanted)
    return given
