"""Step-level continuous batching: requests in, one batched network call per step, images out.

Driven by hand or by an EngineThread: whoever calls step() owns the engine. Only reserve(),
check(), estimate_seconds() and statistics() may be called from other threads.
"""

import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping

import numpy as np

from serving.admission import Admission
from serving.denoiser import Denoised, EngineModel, Network
from serving.device_denoiser import make_denoiser
from serving.engine_statistics import EngineStatistics, EngineTotals, StepStats
from serving.hand_over import HandOver
from serving.image_cache import ImageCache
from serving.lane_giver import LaneGiver
from serving.lanes import BoolArray, Int64Array
from serving.pace import Pace
from serving.request import GenerateSpec, Outcome, Sink
from serving.request_book import ActiveRequest, RequestBook, Ticket, tell_done
from serving.scheduling import AGEING, SchedulingPolicy, WorkQueue
from serving.sharing import Sharing
from serving.spec_check import check_spec

__all__ = ["Engine", "EngineModel", "EngineStatistics", "StepStats", "Ticket"]

logger = logging.getLogger(__name__)


class Engine:
    """Denoises the images of any mixture of requests in common batches.

    Every request that submit() or reserve() accepted gets exactly one Sink.done().
    """

    def __init__(
        self,
        model: EngineModel,
        network: Network,
        *,
        max_lanes: int = 64,
        max_queued_images: int = 4096,
        max_queued_requests: int = 1024,
        policy: SchedulingPolicy = "srpt",
        ageing: float = AGEING,
        cache_bytes: int = 0,
        padded_rows: Callable[[int], int] = lambda rows: rows,
        step_seconds: Mapping[int, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes an engine without work.

        Args:
            model: what the network draws.
            network: the noise predictor, called with up to 2 * max_lanes rows.
            max_lanes: images in one batch at most; a guided one takes two rows.
            max_queued_images: images that may wait for a lane.
            max_queued_requests: requests that may wait for their first lane.
            policy: see WorkQueue.
            ageing: see WorkQueue.
            cache_bytes: for finished images; with 0 nothing is kept, nor shared in flight.
            padded_rows: rows that the network computes for a batch, for the statistics.
            step_seconds: of steps that were timed before, by their rows: the first pace.
            clock: seconds, monotonic; the clock of GenerateSpec.deadline_seconds.
        """
        if max_lanes < 1:
            raise ValueError(f"max_lanes must be at least 1, got {max_lanes}")
        self._model = model
        self._clock = clock
        self._padded_rows = padded_rows
        self._network = network
        self._pace = Pace()
        for rows, seconds in (step_seconds or {}).items():
            self._pace.observe(rows, seconds)
        self._admission = Admission(
            max_queued_images=max_queued_images,
            max_queued_requests=max_queued_requests,
            lanes=max_lanes,
            policy=policy,
            pace=self._pace,
        )
        self._max_lanes = max_lanes
        # Each has an image in a lane or waiting, so there cannot be more requests than these.
        self._make_queue = functools.partial(
            WorkQueue, max_queued_images + max_lanes, policy=policy, ageing=ageing
        )
        self._cache = ImageCache(cache_bytes) if cache_bytes else None
        self._ids = itertools.count(1)
        self._totals = EngineTotals()
        self._start_empty()

    def _start_empty(self) -> None:
        self._denoiser = make_denoiser(self._model, self._network, self._max_lanes, self._clock)
        self._lanes = self._denoiser.lanes
        self._queue = self._make_queue()
        self._book = RequestBook(self._queue.slots)
        self._hand_over = HandOver(self._book, self._end)
        self._sharing = (
            None if self._cache is None else Sharing(self._cache, self._denoiser, self._queue)
        )
        self._lane_giver = LaneGiver(
            self._denoiser, self._queue, self._book, self._hand_over, self._sharing
        )
        self._cancelled: dict[int, str] = {}
        self._stats = StepStats()

    @property
    def model(self) -> EngineModel:
        """What the engine draws."""
        return self._model

    @property
    def has_work(self) -> bool:
        """Whether step() has anything to do."""
        return bool(self._book)

    def check(self, spec: GenerateSpec) -> None:
        """Refuses a spec that no engine of this model could run. Safe from any thread.

        Raises:
            ValueError: from check_spec.
        """
        check_spec(spec, self._model, self._admission.max_queued_images)

    def submit(self, spec: GenerateSpec, sink: Sink) -> int:
        """Accepts a request and returns its id.

        Raises:
            QueueFull: if it does not fit into the queue. The sink is not called.
            DeadlineUnmeetable: if it would not be finished in time. Neither then.
            ValueError: from check().
        """
        ticket = self.reserve(spec)
        self.enqueue(ticket, spec, sink)
        return ticket.request_id

    def reserve(self, spec: GenerateSpec) -> Ticket:
        """The first half of submit(), quick and safe from any thread: takes room in the queue.

        Raises:
            QueueFull, DeadlineUnmeetable, ValueError: as submit() does.
        """
        self.check(spec)
        now = self._clock()
        self._admission.reserve(spec, now)
        return Ticket(next(self._ids), now)

    def enqueue(self, ticket: Ticket, spec: GenerateSpec, sink: Sink) -> None:
        """The second half of submit(), for the thread that owns the engine."""
        deadline = math.inf if spec.deadline_seconds is None else spec.deadline_seconds
        slot = self._queue.add(
            ticket.request_id, spec.count, spec.work_per_image, spec.num_steps, deadline
        )
        self._book.open(ticket, spec, sink, slot)
        self._admission.enqueued(spec)

    def cancel(self, request_id: int, detail: str = "cancelled by its caller") -> None:
        """Ends a request at the beginning of the next step. Idempotent; unknown ids are ignored."""
        if self._book.get(request_id) is not None:
            self._cancelled.setdefault(request_id, detail)

    def step(self) -> StepStats | None:
        """One engine step: ends what is cancelled or expired, gives out lanes, advances all lanes.

        A network that fails ends the requests of its batch (raised) or of its bad lanes (NaN,
        Inf), never the engine.

        Returns:
            None if there was nothing to do.
        """
        begin = self._clock()
        stats = self._stats = StepStats()
        self._end_cancelled_and_expired(begin)
        self._free_lanes()
        if self._queue.due:
            self._lane_giver.give(self._pace.cost, begin, stats)
            self._publish()
        if self._lanes.count:
            self._run_batch(stats)
        elif stats.requests_done:
            self._free_lanes()  # of requests that the cache could serve whole
        else:
            return None
        stats.total_seconds = self._clock() - begin
        self._pace.observe(stats.rows_useful, stats.total_seconds)
        self._totals.add(stats)
        if not self.has_work:
            self._publish()
        return stats

    def end_all(self, outcome: Outcome, detail: str) -> StepStats:
        """Ends every request that is enqueued, now, and makes everything else anew.

        For an engine that is being given up, or whose step has raised: whatever state it is in, it
        is like a new one afterwards. Requests that were reserved only are kept.

        Returns:
            what that did, like a step that only ends requests.
        """
        self._stats = StepStats()
        for request in self._book.all():
            try:
                self._end(request, outcome, detail)
            except Exception:  # done() was said; the others must hear it too
                logger.exception("request %d left something behind", request.ticket.request_id)
        ended = self._stats
        for lanes in (self._lanes, self._denoiser.aside.lanes):
            ended.rows_given_up += int(lanes.rows_computed[: lanes.count].sum())
        self._totals.add(ended)
        self._start_empty()
        self._publish()
        return ended

    def estimate_seconds(self, spec: GenerateSpec) -> float | None:
        """Seconds from now until a request would be finished; None before the first step."""
        return self._admission.estimate_seconds(spec)

    @property
    def longest_step_seconds(self) -> float | None:
        """What the largest batch takes at the measured pace; None before the first step."""
        cost = self._pace.cost
        return None if cost is None else cost.seconds(2 * self._max_lanes)

    def statistics(self) -> EngineStatistics:
        """A snapshot. Safe from any thread."""
        return EngineStatistics(
            lanes_active=self._lanes.count,
            lanes_capacity=self._lanes.capacity,
            lanes_set_aside=self._denoiser.aside.lanes.count,
            images_waiting=self._admission.images_waiting,
            images_waiting_limit=self._admission.max_queued_images,
            requests_waiting=self._admission.requests_waiting,
            requests_waiting_limit=self._admission.max_queued_requests,
            requests_active=len(self._book),
            seconds_per_row=self._pace.seconds_per_row,
            cache_bytes=0 if self._cache is None else self._cache.size_bytes,
            totals=self._totals.snapshot(),
        )

    # The beginning of a step

    def _end_cancelled_and_expired(self, now_seconds: float) -> None:
        while self._cancelled:
            request_id, detail = self._cancelled.popitem()
            if (request := self._book.get(request_id)) is not None:
                self._end(request, Outcome.CANCELLED, detail)
        for request in self._book.at(self._queue.expired(now_seconds)):
            self._end(request, Outcome.DEADLINE_EXCEEDED, "its deadline passed")

    def _publish(self) -> None:
        shared = 0 if self._sharing is None else self._sharing.images_shared
        self._admission.publish(self._queue.backlog(self._lanes.count, shared))

    # The batch

    def _run_batch(self, stats: StepStats) -> None:
        lanes, n = self._lanes, self._lanes.count
        slots, rows = lanes.request[:n].copy(), self._denoiser.lane_rows()
        stats.lanes, stats.rows_useful = n, int(rows.sum())
        stats.rows = self._padded_rows(stats.rows_useful)
        lanes.rows_computed[:n] += rows
        self._queue.served(slots, rows)
        finished = None
        try:
            denoised = self._denoiser.step()
        except Exception as error:
            logger.exception("the network failed for a batch of %d rows", stats.rows_useful)
            stats.network_failures = 1
            self._fail(np.arange(n), f"the network raised {type(error).__name__}")
        else:
            self._take_results(denoised, stats)
            finished = denoised.finished
        stats.network_seconds = self._denoiser.network_seconds
        self._free_lanes(finished)

    def _take_results(self, denoised: Denoised, stats: StepStats) -> None:
        """Previews and images to their sinks; ends requests that are complete or have failed."""
        lanes, n = self._lanes, self._lanes.count
        if denoised.nonfinite.any():
            stats.nonfinite_lanes = int(np.count_nonzero(denoised.nonfinite))
            logger.error("the network gave NaN or Inf for %d of %d lanes", stats.nonfinite_lanes, n)
            self._fail(denoised.nonfinite.nonzero()[0], "the network gave NaN or Inf")
        self._hand_over.previews(lanes, denoised, stats)
        finished = (denoised.finished & ~self._book.ended[lanes.request[:n]]).nonzero()[0]
        if finished.size:
            self._queue.finished(lanes.request[finished])
            stats.rows_finished = int(lanes.rows_computed[finished].sum())
            lanes.rows_computed[finished] = 0
            self._hand_over.images(lanes, finished, self._sharing, stats)

    # The end of a request

    def _fail(self, which: Int64Array, detail: str) -> None:
        """Ends the requests of these lanes, and those that share them."""
        lanes = self._lanes
        failed = self._book.at(np.unique(lanes.request[which]))
        if self._sharing is not None:
            failed += self._sharing.sharers(lanes, which)
        for request in failed:
            self._end(request, Outcome.NETWORK_FAILED, detail)

    def _end(self, request: ActiveRequest, outcome: Outcome, detail: str) -> None:
        """Says done(), once, and leaves the request's lanes to _free_lanes."""
        if not self._book.close(request):
            return
        try:
            self._queue.withdraw(request.slot)
            if self._sharing is not None:
                self._sharing.ended(request)
            if request.plan is not None:
                self._denoiser.plans.release(request.plan)
            done = self._stats.requests_done
            done[outcome] = done.get(outcome, 0) + 1
        finally:
            tell_done(request, outcome, self._clock(), detail)

    def _free_lanes(self, finished: BoolArray | None = None) -> None:
        """Frees the lanes of ended requests and the finished ones, then the requests' slots."""
        lanes, ended = self._lanes, self._book.ended
        if self._book.any_ended:
            leaving = ended[lanes.request[: lanes.count]]
            given_up = lanes.leave(leaving if finished is None else leaving | finished)
            self._stats.rows_given_up += given_up + self._denoiser.aside.drop(ended)
        elif finished is not None:
            lanes.leave(finished)
        for slot in self._book.free_ended():
            self._queue.free(slot)
