"""Step-level continuous batching: requests in, one batched network call per step, images out.

Driven by hand or by an EngineThread: whoever calls step() owns the engine. Only reserve(),
check() and statistics() may be called from other threads.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion.reference import to_uint8
from diffusion.samplers import SAMPLERS
from serving.denoiser import Denoised, Denoiser, EngineModel, Network
from serving.engine_statistics import EngineStatistics, EngineTotals, StepStats
from serving.lanes import BoolArray, Float32Array, Int64Array
from serving.request import GenerateSpec, Outcome, Sink
from serving.scheduling import AGEING, Admission, WorkQueue

__all__ = ["Engine", "EngineModel", "EngineStatistics", "StepStats", "Ticket"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Room in the queue that was promised to a request."""

    request_id: int
    submitted_seconds: float


@dataclass(slots=True, eq=False)
class _Request:
    """An accepted request, from enqueue() to done()."""

    ticket: Ticket
    spec: GenerateSpec
    sink: Sink
    slot: int
    next_index: int
    images_left: int
    plan: int | None = None
    started_seconds: float | None = None


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
        ageing: float = AGEING,
        padded_rows: Callable[[int], int] = lambda rows: rows,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes an engine without work.

        Args:
            model: what the network draws.
            network: the noise predictor, called with up to 2 * max_lanes rows.
            max_lanes: images in one batch at most; a guided one takes two rows.
            max_queued_images: images that may wait for a lane.
            ageing: see WorkQueue.
            padded_rows: rows that the network computes for a batch, for the statistics.
            clock: seconds, monotonic; the clock of GenerateSpec.deadline_seconds.
        """
        if max_lanes < 1:
            raise ValueError(f"max_lanes must be at least 1, got {max_lanes}")
        self._model = model
        self._clock = clock
        self._padded_rows = padded_rows
        self._network = network
        self._denoiser = Denoiser(model, self._timed_network, max_lanes)
        self._lanes = self._denoiser.lanes
        self._admission = Admission(max_queued_images)
        # A request has an image waiting or a lane, so there cannot be more requests than these.
        self._queue = WorkQueue(max_queued_images + max_lanes, ageing=ageing)
        self._ids = itertools.count(1)
        self._requests: dict[int, _Request] = {}
        self._by_slot: list[_Request | None] = [None] * self._queue.slots
        self._cancelled: dict[int, str] = {}
        self._leaving = np.zeros(self._queue.slots, dtype=np.bool_)
        self._leaving_slots: list[int] = []
        self._stats = StepStats()
        self._totals = EngineTotals()

    @property
    def model(self) -> EngineModel:
        """What the engine draws."""
        return self._model

    @property
    def has_work(self) -> bool:
        """Whether step() has anything to do."""
        return bool(self._requests)

    def check(self, spec: GenerateSpec) -> None:
        """Refuses a spec that no engine of this model could run. Safe from any thread.

        Raises:
            ValueError: naming the field. The edge has validated before; this is the second lock.
        """
        num_train_timesteps = self._model.schedule.num_train_timesteps
        ranges = {
            "label": (spec.label, 0, self._model.null_label),
            "count": (spec.count, 1, self._admission.limit),
            "first_index": (spec.first_index, 0, 2**32 - spec.count),
            "seed": (spec.seed, 0, 2**64 - 1),
            "num_steps": (spec.num_steps, 1, num_train_timesteps),
            "preview_every": (spec.preview_every, 0, num_train_timesteps),
        }
        for name, (value, least, most) in ranges.items():
            if not least <= value <= most:
                raise ValueError(f"{name} must be in {least}..{most}, got {value}")
        if spec.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {spec.sampler!r}")
        if not math.isfinite(spec.guidance_scale):
            raise ValueError(f"guidance_scale must be finite, got {spec.guidance_scale}")

    def submit(self, spec: GenerateSpec, sink: Sink) -> int:
        """Accepts a request and returns its id.

        Raises:
            QueueFull: if its images do not fit into the queue. The sink is not called.
            ValueError: from check().
        """
        ticket = self.reserve(spec)
        self.enqueue(ticket, spec, sink)
        return ticket.request_id

    def reserve(self, spec: GenerateSpec) -> Ticket:
        """The first half of submit(), quick and safe from any thread: takes room in the queue.

        Raises:
            QueueFull, ValueError: as submit() does.
        """
        self.check(spec)
        self._admission.reserve(spec.count, spec.count * spec.work_per_image)
        return Ticket(next(self._ids), self._clock())

    def enqueue(self, ticket: Ticket, spec: GenerateSpec, sink: Sink) -> None:
        """The second half of submit(), for the thread that owns the engine."""
        deadline = math.inf if spec.deadline_seconds is None else spec.deadline_seconds
        slot = self._queue.add(ticket.request_id, spec.count, spec.work_per_image, deadline)
        request = _Request(ticket, spec, sink, slot, spec.first_index, spec.count)
        self._requests[ticket.request_id] = self._by_slot[slot] = request

    def cancel(self, request_id: int, detail: str = "cancelled by its caller") -> None:
        """Ends a request at the beginning of the next step. Idempotent; unknown ids are ignored."""
        if request_id in self._requests:
            self._cancelled.setdefault(request_id, detail)

    def step(self) -> StepStats | None:
        """One engine step: ends what is cancelled or expired, fills free lanes, advances all lanes.

        A network that fails ends the requests of its batch (raised) or of its bad lanes (NaN,
        Inf), never the engine.

        Returns:
            None if there was nothing to do.
        """
        begin = self._clock()
        stats = self._stats = StepStats()
        self._end_cancelled_and_expired(begin)
        self._free_lanes()
        self._fill_lanes(begin)
        if self._lanes.count:
            self._run_batch(stats)
        elif not stats.requests_done:
            return None
        end = self._clock()
        stats.total_seconds = end - begin
        self._count(stats)
        return stats

    def end_all(self, outcome: Outcome, detail: str) -> None:
        """Ends every request now; for an engine that is being given up."""
        now = self._clock()
        self._stats = StepStats()
        for request in list(self._requests.values()):
            try:
                self._end(request, outcome, now, detail)
            except Exception:  # done() was said; the others must hear it too
                logger.exception("request %d left something behind", request.ticket.request_id)
        self._free_lanes()
        self._count(self._stats)

    def statistics(self) -> EngineStatistics:
        """A snapshot. Safe from any thread."""
        return EngineStatistics(
            lanes_active=self._lanes.count,
            lanes_capacity=self._lanes.capacity,
            images_waiting=self._admission.images_waiting,
            images_waiting_limit=self._admission.limit,
            requests_active=len(self._requests),
            seconds_per_row=self._admission.seconds_per_row,
            totals=self._totals.snapshot(),
        )

    # The beginning of a step

    def _end_cancelled_and_expired(self, now_seconds: float) -> None:
        while self._cancelled:
            request_id, detail = self._cancelled.popitem()
            if (request := self._requests.get(request_id)) is not None:
                self._end(request, Outcome.CANCELLED, now_seconds, detail)
        for request in self._at(self._queue.expired(now_seconds)):
            self._end(request, Outcome.DEADLINE_EXCEEDED, now_seconds, "its deadline passed")

    def _fill_lanes(self, now_seconds: float) -> None:
        first_lane, free = self._lanes.count, self._lanes.free
        if not free or not self._queue.waiting.any():
            return
        running_work = self._lanes.work_by_request(self._queue.slots)
        started = []
        for slot, images in self._queue.grant(free, running_work):
            request = self._by_slot[slot]
            assert request is not None
            if request.plan is None:
                request.plan = self._denoiser.plans.acquire(
                    request.spec.sampler, request.spec.num_steps
                )
                request.started_seconds = now_seconds
                started.append(request)
            self._denoiser.join(
                request.spec,
                request=slot,
                plan=request.plan,
                first_index=request.next_index,
                images=images,
            )
            request.next_index += images
            self._stats.images_started += images
        self._admission.left(self._stats.images_started)
        self._denoiser.draw_initial(first_lane)
        for request in started:
            self._tell(request, request.sink.started)

    # The batch

    def _run_batch(self, stats: StepStats) -> None:
        stats.lanes, stats.rows_useful = self._lanes.count, self._denoiser.rows
        stats.rows = self._padded_rows(stats.rows_useful)
        finished = None
        try:
            denoised = self._denoiser.step()
        except Exception as error:
            logger.exception("the network failed for a batch of %d rows", stats.rows_useful)
            stats.network_failures = 1
            detail = f"the network raised {type(error).__name__}"
            self._fail(self._lanes.request[: self._lanes.count], detail)
        else:
            finished = denoised.finished
            self._hand_over(denoised, stats)
        self._free_lanes(finished)
        self._queue.worked(stats.rows_useful)

    def _timed_network(self, x_t: Float32Array, emb: Float32Array) -> Float32Array:
        begin = self._clock()
        try:
            return self._network(x_t, emb)
        finally:
            self._stats.network_seconds = self._clock() - begin

    def _hand_over(self, denoised: Denoised, stats: StepStats) -> None:
        """Previews and images to their sinks; ends requests that are complete or have failed."""
        lanes, n = self._lanes, self._lanes.count
        if denoised.nonfinite.any():
            stats.nonfinite_lanes = int(np.count_nonzero(denoised.nonfinite))
            logger.error("the network gave NaN or Inf for %d of %d lanes", stats.nonfinite_lanes, n)
            self._fail(lanes.request[:n][denoised.nonfinite], "the network gave NaN or Inf")
        well = ~self._leaving[lanes.request[:n]]
        every = lanes.preview_every[:n]
        if every.any():
            due = (every > 0) & (lanes.position[:n] % np.maximum(every, 1) == 0)
            previews = np.flatnonzero(due & ~denoised.finished & well)
            self._hand_over_previews(previews, denoised.x_0)
        finished = np.flatnonzero(denoised.finished & well)
        if finished.size:
            self._hand_over_images(finished)

    def _hand_over_previews(self, previews: Int64Array, x_0: Float32Array) -> None:
        pixels = to_uint8(x_0[previews])
        indices = self._lanes.index[previews].tolist()
        positions = self._lanes.position[previews].tolist()
        requests = self._at(self._lanes.request[previews])
        for request, index, position, picture in zip(
            requests, indices, positions, pixels, strict=True
        ):
            told = self._tell(request, request.sink.preview, index, position, picture)
            self._stats.previews += told

    def _hand_over_images(self, finished: Int64Array) -> None:
        pixels = to_uint8(self._lanes.x[finished])
        indices = self._lanes.index[finished].tolist()
        requests = self._at(self._lanes.request[finished])
        now = self._clock()
        for request, index, picture in zip(requests, indices, pixels, strict=True):
            if not self._tell(request, request.sink.image, index, picture):
                continue
            self._stats.images_finished += 1
            request.images_left -= 1
            if request.images_left == 0:
                self._end(request, Outcome.FINISHED, now, "")

    # The end of a request

    def _fail(self, slots: Int64Array, detail: str) -> None:
        now = self._clock()
        for request in self._at(np.unique(slots)):
            self._end(request, Outcome.NETWORK_FAILED, now, detail)

    def _end(self, request: _Request, outcome: Outcome, now_seconds: float, detail: str) -> None:
        """Says done(), once, and marks the request's lanes for _free_lanes."""
        if self._requests.pop(request.ticket.request_id, None) is None:
            return
        try:
            self._withdraw(request)
            done = self._stats.requests_done
            done[outcome] = done.get(outcome, 0) + 1
        finally:
            self._say_done(request, outcome, now_seconds, detail)

    def _withdraw(self, request: _Request) -> None:
        self._leaving[request.slot] = True
        self._leaving_slots.append(request.slot)
        self._admission.left(self._queue.withdraw(request.slot))
        if request.plan is not None:
            self._denoiser.plans.release(request.plan)

    def _say_done(
        self, request: _Request, outcome: Outcome, now_seconds: float, detail: str
    ) -> None:
        started = now_seconds if request.started_seconds is None else request.started_seconds
        queue_seconds = started - request.ticket.submitted_seconds
        try:
            request.sink.done(outcome, queue_seconds, now_seconds - started, detail)
        except Exception:
            logger.exception("the sink of request %d raised", request.ticket.request_id)

    def _tell(self, request: _Request, method: Callable[..., None], *arguments: Any) -> bool:
        """Calls the sink of a request that has not ended; whether that went well."""
        if request.ticket.request_id not in self._requests:
            return False
        try:
            method(*arguments)
        except Exception:
            logger.exception("the sink of request %d raised", request.ticket.request_id)
            self._end(request, Outcome.CANCELLED, self._clock(), "its sink raised")
            return False
        return True

    def _free_lanes(self, finished: BoolArray | None = None) -> None:
        """Frees the lanes of ended requests and the finished ones, then the requests' slots."""
        if self._leaving_slots or finished is not None:
            leaving = self._leaving[self._lanes.request[: self._lanes.count]]
            self._lanes.leave(leaving if finished is None else leaving | finished)
        for slot in self._leaving_slots:
            self._leaving[slot] = False
            self._by_slot[slot] = None
            self._queue.free(slot)
        self._leaving_slots.clear()

    def _at(self, slots: Int64Array) -> list[_Request]:
        """The requests of these slots, which must be in use."""
        return [request for slot in slots.tolist() if (request := self._by_slot[slot]) is not None]

    def _count(self, stats: StepStats) -> None:
        """Adds a step to the totals and to the measured pace."""
        self._totals.add(stats)
        images = self._lanes.count + int(self._queue.waiting.sum())
        work = self._queue.waiting_work() + int(self._lanes.work_left().sum())
        self._admission.measured(stats.rows_useful, stats.total_seconds, images, work)
