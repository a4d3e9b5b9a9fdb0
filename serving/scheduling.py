"""Who runs next, and how many may wait.

WorkQueue orders the requests (engine's thread only); Admission bounds the queue (any thread).
Work is counted in network rows: rows per step and image, times steps.
"""

import threading

import numpy as np
import numpy.typing as npt

from serving.request import QueueFull

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

AGEING = 0.5
"""Share of the engine that the request which was passed over longest can count on."""

_PACE_WEIGHT = 0.1  # of the newest engine step in the measured pace
_UNMEASURED_RETRY_SECONDS = 1.0
_RETRY_SECONDS = (0.05, 120.0)  # a wait estimate is kept within these


class WorkQueue:
    """Requests by slot, in the order shortest remaining work first, with ageing.

    The clock of ageing is the engine's own work: while it does R rows, each waiting request gains
    ageing * R rows of credit, and the least (remaining work - credit) goes first. A lane granted
    costs 2 / ageing times its work in credited time, never more than there is. So a request is
    passed by no smaller one that came remaining / ageing rows later, and gets at least the share
    `ageing` of the engine from then on; and a request that is being served gathers no credit with
    which to hold up a small one. Equals go in the order in which they came.

    Attributes:
        waiting: int64 [slots], images that have no lane yet.
        image_work: int64 [slots], rows that one image takes in all.
        deadline_seconds: float64 [slots], infinity for none.
    """

    def __init__(self, slots: int, *, ageing: float = AGEING) -> None:
        """`ageing` in 0..1; with 0 a large request can starve."""
        if not 0.0 <= ageing <= 1.0:
            raise ValueError(f"ageing must be in 0..1, got {ageing}")
        self._ageing = ageing
        self._work_done = 0.0
        self._free_slots = list(range(slots - 1, -1, -1))
        self._order: Int64Array = np.zeros(slots, dtype=np.int64)
        self._aged_since: Float64Array = np.zeros(slots, dtype=np.float64)
        self.waiting: Int64Array = np.zeros(slots, dtype=np.int64)
        self.image_work: Int64Array = np.zeros(slots, dtype=np.int64)
        self.deadline_seconds: Float64Array = np.full(slots, np.inf)

    @property
    def slots(self) -> int:
        """Requests that there is room for."""
        return len(self.waiting)

    def waiting_work(self) -> int:
        """Rows that all waiting images need."""
        return int(self.waiting @ self.image_work)

    def add(self, order: int, images: int, image_work: int, deadline_seconds: float) -> int:
        """Enters a request and returns its slot. `order` tells equals apart: lower goes first."""
        slot = self._free_slots.pop()
        self._order[slot] = order
        self._aged_since[slot] = self._work_done
        self.waiting[slot] = images
        self.image_work[slot] = image_work
        self.deadline_seconds[slot] = deadline_seconds
        return slot

    def withdraw(self, slot: int) -> int:
        """Nothing of this request is to be started or timed any more; returns what waited."""
        waiting = int(self.waiting[slot])
        self.waiting[slot] = 0
        self.deadline_seconds[slot] = np.inf
        return waiting

    def free(self, slot: int) -> None:
        """Gives the slot of a withdrawn request to whoever comes next."""
        self._free_slots.append(slot)

    def expired(self, now_seconds: float) -> Int64Array:
        """Slots whose deadline has come, int64."""
        return np.flatnonzero(self.deadline_seconds <= now_seconds)

    def worked(self, rows: int) -> None:
        """The engine has done so many rows, for whomever."""
        self._work_done += rows

    def grant(self, lanes: int, running_work: Float64Array) -> list[tuple[int, int]]:
        """Gives up to `lanes` lanes to waiting images.

        Args:
            lanes: lanes to give, 1 or more.
            running_work: float64 [slots], rows that each request's running lanes still need.

        Returns:
            (slot, images) in the order in which they were chosen; each at least 1 image.
        """
        slots = np.flatnonzero(self.waiting)
        remaining = self.waiting[slots] * self.image_work[slots] + running_work[slots]
        urgency = remaining - self._ageing * (self._work_done - self._aged_since[slots])
        if slots.size > 4 * lanes:  # sort those that can win at all, ties included
            last = np.partition(urgency, lanes - 1)[lanes - 1]
            able = urgency <= last
            slots, urgency = slots[able], urgency[able]
        granted = []
        for slot in slots[np.lexsort((self._order[slots], urgency))].tolist():
            images = min(lanes, int(self.waiting[slot]))
            self.waiting[slot] -= images
            self._spend_credit(slot, images)
            granted.append((slot, images))
            lanes -= images
            if lanes == 0:
                break
        return granted

    def _spend_credit(self, slot: int, images: int) -> None:
        if self._ageing:
            spent = 2.0 * images * self.image_work[slot] / self._ageing
            self._aged_since[slot] = min(self._work_done, self._aged_since[slot] + spent)


class Admission:
    """The bound of the queue, in images, and the measured pace. Safe to use from any thread."""

    def __init__(self, max_queued_images: int) -> None:
        """`max_queued_images` is at least 1."""
        if max_queued_images < 1:
            raise ValueError(f"max_queued_images must be at least 1, got {max_queued_images}")
        self._limit = max_queued_images
        self._lock = threading.Lock()
        self._waiting = 0
        self._images = 0
        self._work = 0
        self._seconds_per_row: float | None = None

    @property
    def limit(self) -> int:
        """Images that may wait."""
        return self._limit

    @property
    def images_waiting(self) -> int:
        """Images accepted that have no lane yet."""
        return self._waiting

    @property
    def seconds_per_row(self) -> float | None:
        """Measured pace of the engine, steps as a whole; None before the first."""
        return self._seconds_per_row

    def reserve(self, images: int, work: int) -> None:
        """Takes room in the queue for the images of a request, which need `work` rows in all.

        Raises:
            QueueFull: if there is none.
        """
        with self._lock:
            if self._waiting + images > self._limit:
                raise QueueFull(self._limit, self._waiting, self._retry_after_seconds(images))
            self._waiting += images
            self._images += images
            self._work += work

    def left(self, images: int) -> None:
        """So many images wait no longer: they have a lane, or their request has ended."""
        with self._lock:
            self._waiting -= images

    def measured(self, rows: int, seconds: float, images: int, work: int) -> None:
        """Takes note of an engine step.

        Args:
            rows: useful network rows in it.
            seconds: that it took as a whole.
            images: waiting and running after it.
            work: rows that these still need.
        """
        with self._lock:
            self._images, self._work = images, work
            if rows > 0 and seconds > 0.0:
                pace = seconds / rows
                before = pace if self._seconds_per_row is None else self._seconds_per_row
                self._seconds_per_row = before + _PACE_WEIGHT * (pace - before)

    def _retry_after_seconds(self, images: int) -> float:
        """Until so many images fit, if all that is here takes the average time."""
        if self._seconds_per_row is None:
            return _UNMEASURED_RETRY_SECONDS
        must_leave = min(self._waiting + images - self._limit, self._waiting)
        work_per_image = self._work / max(self._images, 1)
        shortest, longest = _RETRY_SECONDS
        return min(max(must_leave * work_per_image * self._seconds_per_row, shortest), longest)
