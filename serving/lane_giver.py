"""Gives out the lanes as the queue allots them."""

import numpy as np

from serving.denoiser import Denoiser
from serving.engine_statistics import StepStats
from serving.filling_up import FillingUp
from serving.hand_over import HandOver
from serving.lanes import Int64Array
from serving.request_book import ActiveRequest, RequestBook
from serving.scheduling import WorkQueue
from serving.sharing import Hit, Sharing


class LaneGiver:
    """Sets lanes aside, takes them up again, and starts images. Not thread-safe."""

    def __init__(
        self,
        denoisers: tuple[Denoiser, ...],
        queue: WorkQueue,
        book: RequestBook,
        hand_over: HandOver,
        sharing: Sharing | None,
    ) -> None:
        """`denoisers` of one engine, one for each worker."""
        self._denoisers = denoisers
        self._queue = queue
        self._book = book
        self._hand_over = hand_over
        self._sharing = sharing

    def give(
        self, worker: int, lanes: int, filling_up: FillingUp, now_seconds: float, stats: StepStats
    ) -> None:
        """Brings every request to the lanes of a worker that it has in its next step.

        Args:
            worker: whose lanes.
            lanes: that are given out at most.
            filling_up: how far a step is.
            now_seconds: of the engine's clock.
            stats: of the step.
        """
        denoiser = self._denoisers[worker]
        held, elsewhere = self._held(worker), None
        for other in range(len(self._denoisers)):
            if other != worker:
                elsewhere = self._held(other) + (0 if elsewhere is None else elsewhere)
        slots, allotted = self._queue.allot(
            held, lanes, filling_up, elsewhere=elsewhere, worker=worker
        )
        target = np.zeros_like(held)
        target[slots] = allotted
        if (held > target).any():
            leave = max(denoiser.lanes.count - lanes, 0)  # they go to another worker, at once
            stats.lanes_set_aside = max(denoiser.set_aside(target) - leave, 0)
            held = self._held(worker)
            if elsewhere is not None:
                self._queue.review()  # others may have room for these lanes
        missing = target[slots] - held[slots]
        gaining = missing.nonzero()[0]
        if gaining.size:
            requests = self._book.at(slots[gaining])
            self._fill(denoiser, requests, missing[gaining].tolist(), now_seconds, stats)

    def _held(self, worker: int) -> Int64Array:
        """Lanes of a worker by request, int64 [slots]."""
        lanes = self._denoisers[worker].lanes
        held: Int64Array = np.bincount(lanes.request[: lanes.count], minlength=self._queue.slots)
        return held

    def _fill(
        self,
        denoiser: Denoiser,
        requests: list[ActiveRequest],
        lanes: list[int],
        now_seconds: float,
        stats: StepStats,
    ) -> None:
        """Gives each of these requests so many lanes more."""
        started: list[ActiveRequest] = []
        hits: list[Hit] = []
        for request, wanted in zip(requests, lanes, strict=True):
            if request.plan is None:
                request.plan = denoiser.plans.acquire(request.spec.sampler, request.spec.num_steps)
                request.started_seconds = now_seconds
                started.append(request)
            resumed = denoiser.resume(request.slot, wanted)
            stats.lanes_resumed += resumed
            if self._sharing is not None and self._sharing.takes_part(request):
                hits += self._sharing.start(denoiser, request, wanted - resumed, stats)
            else:
                self._start(denoiser, request, wanted - resumed, stats)
        denoiser.draw_initial()
        for request in started:
            self._hand_over.started(request, stats)
        for request, index, pixels in hits:
            self._hand_over.image(request, index, pixels, stats)

    def _start(
        self, denoiser: Denoiser, request: ActiveRequest, images: int, stats: StepStats
    ) -> None:
        """Gives lanes to so many images that have had none."""
        assert request.plan is not None
        denoiser.join(
            request.spec,
            request=request.slot,
            plan=request.plan,
            first_index=request.next_index,
            images=images,
        )
        request.next_index += images
        self._queue.waiting[request.slot] -= images
        stats.images_started += images
