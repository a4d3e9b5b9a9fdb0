"""Gives out the lanes as the queue allots them."""

import numpy as np

from serving.denoiser import Denoiser
from serving.engine_statistics import StepStats
from serving.filling_up import FillingUp
from serving.hand_over import HandOver
from serving.request_book import ActiveRequest, RequestBook
from serving.scheduling import WorkQueue
from serving.sharing import Hit, Sharing


class LaneGiver:
    """Sets lanes aside, takes them up again, and starts images. Not thread-safe."""

    def __init__(
        self,
        denoiser: Denoiser,
        queue: WorkQueue,
        book: RequestBook,
        hand_over: HandOver,
        sharing: Sharing | None,
    ) -> None:
        self._denoiser = denoiser
        self._queue = queue
        self._book = book
        self._hand_over = hand_over
        self._sharing = sharing

    def give(self, filling_up: FillingUp, now_seconds: float, stats: StepStats) -> None:
        """Brings every request to the lanes that it has in the next step."""
        lanes, slots_in_all = self._denoiser.lanes, self._queue.slots
        held = np.bincount(lanes.request[: lanes.count], minlength=slots_in_all)
        slots, allotted = self._queue.allot(held, lanes.capacity, filling_up)
        target = np.zeros_like(held)
        target[slots] = allotted
        if (held > target).any():
            stats.lanes_set_aside = self._denoiser.set_aside(target)
            held = np.bincount(lanes.request[: lanes.count], minlength=slots_in_all)
        missing = target[slots] - held[slots]
        gaining = missing.nonzero()[0]
        if gaining.size:
            requests = self._book.at(slots[gaining])
            self._fill(requests, missing[gaining].tolist(), now_seconds, stats)

    def _fill(
        self,
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
                request.plan = self._denoiser.plans.acquire(
                    request.spec.sampler, request.spec.num_steps
                )
                request.started_seconds = now_seconds
                started.append(request)
            resumed = self._denoiser.resume(request.slot, wanted)
            stats.lanes_resumed += resumed
            if self._sharing is not None and self._sharing.takes_part(request):
                hits += self._sharing.start(request, wanted - resumed, stats)
            else:
                self._start(request, wanted - resumed, stats)
        self._denoiser.draw_initial()
        for request in started:
            self._hand_over.started(request, stats)
        for request, index, pixels in hits:
            self._hand_over.image(request, index, pixels, stats)

    def _start(self, request: ActiveRequest, images: int, stats: StepStats) -> None:
        """Gives lanes to so many images that have had none."""
        assert request.plan is not None
        self._denoiser.join(
            request.spec,
            request=request.slot,
            plan=request.plan,
            first_index=request.next_index,
            images=images,
        )
        request.next_index += images
        self._queue.waiting[request.slot] -= images
        stats.images_started += images
