"""Who may wait: the bounds of the queue, and whether a deadline can be met."""

import threading
from bisect import bisect_left, bisect_right, insort

from serving.pace import Pace
from serving.request import DeadlineUnmeetable, GenerateSpec, QueueFull
from serving.scheduling import EMPTY_BACKLOG, Backlog, SchedulingPolicy, filled_up_rows

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
    ) -> None:
        """Makes an empty queue.

        Args:
            max_queued_images: images without a lane, at least 1.
            max_queued_requests: requests that have not had a lane, at least 1.
            lanes: of the engine.
            policy: as of the engine's WorkQueue.
            pace: of the engine.
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
        self._lock = threading.Lock()
        self._backlog = EMPTY_BACKLOG
        # Reserved, and not in the backlog yet:
        self._images = 0
        self._work: list[int] = []  # of each request, sorted
        self._enqueued: list[GenerateSpec] = []  # those that the next backlog holds

    @property
    def max_queued_images(self) -> int:
        """Images that may wait."""
        return self._max_images

    @property
    def images_waiting(self) -> int:
        """Images accepted that have no lane, those set aside included."""
        return self._images + self._backlog.images_waiting

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
            requests = len(self._work) + self._backlog.requests_waiting
            if requests >= self._max_requests:
                everyone = len(self._work) + self._backlog.work.size
                retry_after = self._seconds_for_share(1, everyone)
                raise QueueFull("requests", self._max_requests, requests, retry_after)
            self._check_deadline(spec, now_seconds)
            self._images += spec.count
            insort(self._work, work)

    def enqueued(self, spec: GenerateSpec) -> None:
        """The engine has a request that was reserved; its next backlog holds it."""
        with self._lock:
            self._enqueued.append(spec)

    def publish(self, backlog: Backlog) -> None:
        """The engine's requests at present."""
        with self._lock:
            self._backlog = backlog
            for spec in self._enqueued:
                self._images -= spec.count
                del self._work[bisect_left(self._work, spec.count * spec.work_per_image)]
            self._enqueued.clear()

    def estimate_seconds(self, spec: GenerateSpec) -> float | None:
        """Seconds from now until a request would be finished, if nobody else comes.

        None before anything was measured.
        """
        cost = self._pace.cost
        if cost is None:
            return None
        work = spec.count * spec.work_per_image
        backlog = self._backlog
        total = int(backlog.work.sum()) + sum(self._work)
        before = total
        if not self._fifo:
            before = backlog.work_before(work) + sum(self._work[: bisect_right(self._work, work)])
        # Steps are at least those of one image; what goes before shares them as far as it fits.
        full_rows = self._lanes * spec.work_per_image / spec.num_steps
        steps = max(float(spec.num_steps), (before + work) / full_rows)
        rows = (before + work) / steps
        if total > before:  # what comes after fills the steps up
            after = (total - before) / steps
            rows = min(filled_up_rows(cost, rows, full_rows), rows + after)
        under_way = 0.5 * cost.seconds(full_rows) if total else 0.0
        return steps * cost.seconds(rows) + under_way

    def _check_deadline(self, spec: GenerateSpec, now_seconds: float) -> None:
        if spec.deadline_seconds is None:
            return
        estimate = self.estimate_seconds(spec)
        left = spec.deadline_seconds - now_seconds
        if estimate is not None and estimate > left:
            raise DeadlineUnmeetable(estimate, left, _retry(estimate - left))

    def _seconds_for_share(self, part: int, whole: int) -> float:
        """Until so large a part of what is here has left."""
        cost = self._pace.cost
        if cost is None:
            return _UNMEASURED_RETRY_SECONDS
        work = int(self._backlog.work.sum()) + sum(self._work)
        seconds_per_row = cost.seconds(self._lanes) / self._lanes
        return _retry(work * part / max(whole, 1) * seconds_per_row)


def _retry(seconds: float) -> float:
    shortest, longest = _RETRY_SECONDS
    return min(max(seconds, shortest), longest)
