"""Who may wait: the bounds of the queue, and whether a deadline can be met."""

import threading
from bisect import bisect_left, bisect_right

import numpy as np
import numpy.typing as npt

from serving.backlog import EMPTY_BACKLOG, Backlog
from serving.filling_up import LIKE_SIZE, FillingUp
from serving.pace import Pace
from serving.request import DeadlineUnmeetable, GenerateSpec, QueueFull
from serving.scheduling import SchedulingPolicy

BoolArray = npt.NDArray[np.bool_]

_UNMEASURED_RETRY_SECONDS = 1.0
_RETRY_SECONDS = (0.05, 120.0)  # a wait estimate is kept within these


class Admission:
    """The bounds of the queue, and estimates from the measured pace. Safe to use from any thread.

    It sees the engine as of its last publish(), and beside that what was reserved since.
    """

    def __init__(
        self,
        *,
        max_queued_images: int,
        max_queued_requests: int,
        lanes: int,
        policy: SchedulingPolicy,
        pace: Pace,
        filling_up: FillingUp,
    ) -> None:
        """Makes an empty queue.

        Args:
            max_queued_images: images without a lane, at least 1.
            max_queued_requests: requests that have not had a lane, at least 1.
            lanes: of the engine.
            policy: as of the engine's WorkQueue.
            pace: of the engine.
            filling_up: of the engine.
        """
        for name, value in (
            ("max_queued_images", max_queued_images),
            ("max_queued_requests", max_queued_requests),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._max_images = max_queued_images
        self._max_requests = max_queued_requests
        self._lanes = lanes
        self._fifo = policy == "fifo"
        self._pace = pace
        self._filling_up = filling_up
        self._lock = threading.Lock()
        self._backlog, self._backlog_work = EMPTY_BACKLOG, 0
        # Reserved, and not in the backlog yet:
        self._images = 0
        self._work: list[int] = []  # of each request, sorted
        self._widths: list[float] = []  # of the same requests: rows that each can use in a step
        self._enqueued: list[GenerateSpec] = []  # those that the next backlog holds

    @property
    def max_queued_images(self) -> int:
        """Images that may wait."""
        return self._max_images

    @property
    def images_waiting(self) -> int:
        """Images accepted that have no lane, those set aside included."""
        return self._images + self._backlog.images_waiting

    @property
    def max_queued_requests(self) -> int:
        """Requests that may wait."""
        return self._max_requests

    @property
    def requests_waiting(self) -> int:
        """Requests accepted that have not had a lane."""
        return len(self._work) + self._backlog.requests_waiting

    def reserve(self, spec: GenerateSpec, now_seconds: float) -> None:
        """Takes room in the queue for a request.

        Raises:
            QueueFull: if there is none.
            DeadlineUnmeetable: if its deadline would pass before it is finished.
        """
        work = spec.count * spec.work_per_image
        with self._lock:
            waiting = self.images_waiting
            if waiting + spec.count > self._max_images:
                must_leave = min(waiting + spec.count - self._max_images, waiting)
                images = self._images + self._backlog.images
                retry_after = self._seconds_for_share(must_leave, images)
                raise QueueFull("images", self._max_images, waiting, retry_after)
            requests = self.requests_waiting
            if requests >= self._max_requests:
                everyone = len(self._work) + self._backlog.work.size
                retry_after = self._seconds_for_share(1, everyone)
                raise QueueFull("requests", self._max_requests, requests, retry_after)
            self._check_deadline(spec, now_seconds)
            self._images += spec.count
            place = bisect_right(self._work, work)
            self._work.insert(place, work)
            self._widths.insert(place, _width(spec))

    def enqueued(self, spec: GenerateSpec) -> None:
        """The engine has a request that was reserved; its next backlog holds it."""
        with self._lock:
            self._enqueued.append(spec)

    def publish(self, backlog: Backlog) -> None:
        """The engine's requests at present."""
        with self._lock:
            self._backlog, self._backlog_work = backlog, int(backlog.work.sum())
            for spec in self._enqueued:
                self._images -= spec.count
                work = spec.count * spec.work_per_image
                place = self._widths.index(_width(spec), bisect_left(self._work, work))
                del self._work[place], self._widths[place]
            self._enqueued.clear()

    def estimate_seconds(self, spec: GenerateSpec) -> float | None:
        """Seconds from now until a request would be finished, if nobody else comes.

        None before anything was measured.
        """
        with self._lock:
            return self._estimate_seconds(spec)

    def _estimate_seconds(self, spec: GenerateSpec) -> float | None:
        cost = self._pace.cost
        if cost is None:
            return None
        work = spec.count * spec.work_per_image
        full_rows = self._lanes * spec.work_per_image / spec.num_steps
        backlog = self._backlog
        before = self._goes_before(backlog, work)
        # Steps are at least those of as many images as have to follow one another. What goes before
        # runs beside it as far as it fits.
        steps = float(spec.num_steps * -(-spec.count // self._lanes))
        for _ in range(2):
            beside = np.minimum(backlog.work, backlog.width * steps)[before].sum()
            rows_in_all = float(beside) + self._reserved_before(work) + work
            if backlog.elder is not None and not before[backlog.elder]:
                # Its share of the steps, about.
                rows_in_all += min(float(backlog.work[backlog.elder]), rows_in_all)
            steps = max(steps, rows_in_all / full_rows)
        rows = rows_in_all / steps
        if not self._fifo:
            rows = self._filled_up(backlog, before, work, rows, full_rows)
        running = backlog.images - backlog.images_waiting
        under_way = 0.5 * cost.seconds(running) if running else 0.0
        return steps * cost.seconds(rows) + under_way

    def _longest_estimate_seconds(self, spec: GenerateSpec) -> float:
        """A bound of _estimate_seconds that costs little: most deadlines are far beyond it.

        As if all that is here went before, in full steps.
        """
        cost = self._pace.cost
        if cost is None:
            return 0.0
        work = spec.count * spec.work_per_image + sum(self._work) + self._backlog_work
        full_rows = self._lanes * spec.work_per_image / spec.num_steps
        steps = max(float(spec.num_steps * -(-spec.count // self._lanes)), work / full_rows)
        running = self._backlog.images - self._backlog.images_waiting
        return steps * cost.seconds(full_rows) + 0.5 * cost.seconds(running)

    def _goes_before(self, backlog: Backlog, work: int) -> BoolArray:
        """Which requests go before one of so much work that comes now, bool [requests]."""
        if self._fifo:
            return np.ones(backlog.work.size, dtype=np.bool_)
        before: BoolArray = backlog.urgency <= work
        return before

    def _reserved_before(self, work: int) -> int:
        """Work that goes before it of those that the engine has not seen yet."""
        return sum(self._work if self._fifo else self._work[: bisect_right(self._work, work)])

    def _filled_up(
        self,
        backlog: Backlog,
        before: BoolArray,
        work: int,
        rows: float,
        full_rows: float,
    ) -> float:
        """Rows of a step with those that come after and use what is left of it."""
        # Who goes first, and so decides who only fills up, changes: here it is the largest.
        size = max(work, int(backlog.size[before].max(initial=0)))
        like = ~before & (backlog.size <= LIKE_SIZE * size)
        reserved_after = bisect_right(self._work, work)
        reserved_unlike = bisect_right(self._work, LIKE_SIZE * size)
        rows += float(backlog.width[like].sum())
        rows += sum(self._widths[reserved_after : max(reserved_after, reserved_unlike)])
        fillers = float(backlog.width[~before & ~like].sum())
        fillers += sum(self._widths[max(reserved_after, reserved_unlike) :])
        rows = min(full_rows, rows)
        return min(self._filling_up.rows(rows, full_rows), rows + fillers)

    def _check_deadline(self, spec: GenerateSpec, now_seconds: float) -> None:
        if spec.deadline_seconds is None:
            return
        left = spec.deadline_seconds - now_seconds
        if self._longest_estimate_seconds(spec) <= left:
            return
        estimate = self._estimate_seconds(spec)
        if estimate is not None and estimate > left:
            raise DeadlineUnmeetable(estimate, left, _retry(estimate - left))

    def _seconds_for_share(self, part: int, whole: int) -> float:
        """Until so large a part of what is here has left."""
        cost = self._pace.cost
        if cost is None:
            return _UNMEASURED_RETRY_SECONDS
        work = self._backlog_work + sum(self._work)
        seconds_per_row = cost.seconds(self._lanes) / self._lanes
        return _retry(work * part / max(whole, 1) * seconds_per_row)


def _width(spec: GenerateSpec) -> float:
    """Rows that a request can use in a step."""
    return spec.count * spec.work_per_image / spec.num_steps


def _retry(seconds: float) -> float:
    shortest, longest = _RETRY_SECONDS
    return min(max(seconds, shortest), longest)
