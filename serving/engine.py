"""Step-level continuous batching: requests in, one batched network call per step, images out.

Driven by hand or by EngineThreads: whoever calls begin() and finish(), or step(), owns the
engine. Only reserve(), check(), estimate_seconds() and statistics() may be called from other
threads, and Step.run().
"""

import functools
import itertools
import time
from collections.abc import Callable, Mapping

import numpy as np

from serving.admission import Admission
from serving.ageing import AGEING
from serving.batching import Batching
from serving.denoiser import Denoiser
from serving.device_denoiser import make_denoiser
from serving.engine_model import EngineModel, Network, workers_of
from serving.engine_statistics import EngineStatistics, EngineTotals, StepStats
from serving.filling_up import FillingUp
from serving.image_cache import ImageCache
from serving.pace import Pace
from serving.request import GenerateSpec, Outcome, Sink
from serving.request_book import Ticket
from serving.scheduling import SchedulingPolicy, WorkQueue
from serving.spec_check import check_spec
from serving.step import Step

__all__ = ["Engine", "EngineModel", "EngineStatistics", "Step", "StepStats", "Ticket"]


class Engine:
    """Denoises the images of any mixture of requests in common batches.

    Where its network can compute several batches at once (workers_of), so many engine steps are
    under way at once, none of which waits for another: who has to wait for the slowest at every
    step is held up by whatever else the machine does.

    Every request that submit() or reserve() accepted gets exactly one Sink.done().

    Attributes:
        max_lanes, usual_lanes: as it was made with.
    """

    def __init__(
        self,
        model: EngineModel,
        network: Network,
        *,
        max_lanes: int = 64,
        usual_lanes: int | None = None,
        max_queued_images: int = 4096,
        max_queued_requests: int = 1024,
        policy: SchedulingPolicy = "srpt",
        ageing: float = AGEING,
        cache_bytes: int = 0,
        padded_rows: Callable[[int], int] = lambda rows: rows,
        step_seconds: Mapping[int, float] | None = None,
        together: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes an engine without work.

        Args:
            model: what the network draws.
            network: the noise predictor, called with up to 2 * max_lanes rows in all.
            max_lanes: images that are in batches at most, those of all workers together; a guided
                one takes two rows.
            usual_lanes: of these, used while few requests are here (batching.MANY_REQUESTS), so
                that whoever comes waits for a short step; None for all.
            max_queued_images: images that may wait for a lane.
            max_queued_requests: requests that may wait for their first lane.
            policy: see WorkQueue.
            ageing: see WorkQueue.
            cache_bytes: for finished images; with 0 nothing is kept, nor shared in flight.
            padded_rows: rows that the network computes for a batch, for the statistics.
            step_seconds: of steps that all workers make side by side and that were timed before, by
                their rows in all; without, as if a step took as long as its rows take one by one.
            together: whether fewer images than workers are computed sooner by all of these together
                than by one each.
            clock: seconds, monotonic; the clock of GenerateSpec.deadline_seconds.
        """
        if max_lanes < 1:
            raise ValueError(f"max_lanes must be at least 1, got {max_lanes}")
        if usual_lanes is not None and not 1 <= usual_lanes <= max_lanes:
            raise ValueError(f"usual_lanes must be in 1..{max_lanes}, got {usual_lanes}")
        self.max_lanes = max_lanes
        self.usual_lanes = usual_lanes or max_lanes
        self._model = model
        self._clock = clock
        self._padded_rows = padded_rows
        self._together = together
        self._network = network
        self._workers = workers_of(network)[:max_lanes]
        self._under_way: dict[int, Step] = {}
        self._pace = Pace(2 * max_lanes, step_seconds, padded_rows)
        self._filling_up = FillingUp(self._pace, len(self._workers))
        self._admission = Admission(
            max_queued_images=max_queued_images,
            max_queued_requests=max_queued_requests,
            lanes=self.usual_lanes,
            policy=policy,
            pace=self._pace,
            filling_up=self._filling_up,
        )
        # Each has an image in a lane or waiting, so there cannot be more requests than these.
        self._make_queue = functools.partial(
            WorkQueue, max_queued_images + max_lanes, policy=policy, ageing=ageing,
            workers=len(self._workers),
        )  # fmt: skip
        self._cache = ImageCache(cache_bytes) if cache_bytes else None
        self._ids = itertools.count(1)
        self._totals = EngineTotals()
        self._start_empty()

    def _start_empty(self) -> None:
        denoisers: list[Denoiser] = []
        shares = np.array_split(np.arange(self.max_lanes), len(self._workers))
        for share, worker in zip(shares, self._workers, strict=True):
            denoisers.append(
                make_denoiser(
                    self._model, self._network, len(share), self._clock, worker=worker,
                    beside=denoisers[0] if denoisers else None,
                )
            )  # fmt: skip
        self._batching = Batching(
            tuple(denoisers),
            self._workers if len(denoisers) > 1 else (None,),
            self._make_queue(),
            self._cache,
            self._padded_rows,
            self._clock,
            together=self._together,
            usual_lanes=self.usual_lanes,
        )

    @property
    def model(self) -> EngineModel:
        """What the engine draws."""
        return self._model

    @property
    def workers(self) -> int:
        """Steps that can be under way at once."""
        return len(self._workers)

    @property
    def has_work(self) -> bool:
        """Whether there are requests that have not ended."""
        return bool(self._batching.book)

    @property
    def can_begin(self) -> bool:
        """Whether there may be a step for a worker that has none under way."""
        running = self._under_way.values()
        free = len(running) < self.workers and not any(step.alone for step in running)
        return free and self._batching.has_more

    def check(self, spec: GenerateSpec) -> None:
        """Refuses a spec that no engine of this model could run. Safe from any thread.

        Raises:
            ValueError: from check_spec.
        """
        check_spec(spec, self._model, self._admission.max_queued_images)

    def warm_up(self) -> None:
        """Makes the first steps of a thread like all others.

        To be called once on every thread that steps, on one at a time, with no step under way.

        Raises:
            Exception: whatever the network raises.
        """
        for denoiser in self._batching.denoisers:
            denoiser.warm_up()

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
        self._batching.open(ticket, spec, sink)
        self._admission.enqueued(spec)

    def cancel(self, request_id: int, detail: str = "cancelled by its caller") -> None:
        """Ends a request at the beginning of the next step. Idempotent; unknown ids are ignored."""
        self._batching.cancel(request_id, detail)

    def step(self) -> StepStats | None:
        """One engine step, from begin() to finish(), by whoever calls it.

        Returns:
            None if there was nothing to do.
        """
        step = self.begin()
        if step is None:
            return None
        step.run()
        return self.finish(step)

    def begin(self) -> Step | None:
        """Begins an engine step: ends what is cancelled or expired, gives a worker its lanes.

        Returns:
            the step, to be run, and then finished; None if there is nothing to do for any worker
            that has no step under way.
        """
        running = [step for step in self._under_way.values() if step.compute is not None]
        if any(step.alone for step in running):
            return None
        begun = self._clock()
        denoisers = self._batching.denoisers
        free = [worker for worker in range(self.workers) if worker not in self._under_way]
        # Who has more than its share leaves some of it to those that come after.
        for worker in sorted(free, key=lambda worker: -denoisers[worker].lanes.count):
            step = self._batching.begin_step(
                worker, begun, self._filling_up, may_be_alone=not running
            )
            if step is not None:
                if step.stats.reviewed:
                    self._publish()
                step.begun_seconds = begun
                self._under_way[worker] = step
                return step
        return None

    def finish(self, step: Step) -> StepStats:
        """Ends an engine step that was run: hands over what it has made.

        A network that fails ends the requests of its batch (raised) or of its bad lanes (NaN,
        Inf), never the engine.

        Returns:
            what it did; only rows where its requests were ended in the meantime, by end_all().
        """
        del self._under_way[step.worker]
        if step.batching is self._batching:
            self._batching.finish_step(step)
        stats = step.stats
        stats.total_seconds = self._clock() - step.begun_seconds
        side_by_side = 1 if step.alone else self.workers
        self._pace.observe(side_by_side * stats.rows_useful, stats.total_seconds)
        self._filling_up.observe(stats.total_seconds, kept_short=stats.kept_short)
        self._totals.add(stats)
        if not self.has_work:
            self._publish()
        return stats

    def end_all(self, outcome: Outcome, detail: str) -> StepStats:
        """Ends every request that is enqueued, now, and makes everything else anew.

        For an engine that is being given up, or whose step has raised: whatever state it is in, it
        is like a new one afterwards. Requests that were reserved only are kept. Steps that are
        under way are still to be finished, and of no effect.

        Returns:
            what that did, like a step that only ends requests.
        """
        ended = self._batching.end_all(outcome, detail)
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
        return None if cost is None else cost.seconds(2 * self.max_lanes)

    def statistics(self) -> EngineStatistics:
        """A snapshot. Safe from any thread."""
        batching = self._batching
        return EngineStatistics(
            lanes_active=batching.lanes_in_use,
            lanes_capacity=batching.lanes_offered,
            lanes_set_aside=batching.lanes_aside.count,
            images_waiting=self._admission.images_waiting,
            images_waiting_limit=self._admission.max_queued_images,
            requests_waiting=self._admission.requests_waiting,
            requests_waiting_limit=self._admission.max_queued_requests,
            requests_active=len(batching.book),
            seconds_per_row=self._pace.seconds_per_row,
            cache_bytes=0 if self._cache is None else self._cache.size_bytes,
            totals=self._totals.snapshot(),
        )

    def _publish(self) -> None:
        self._admission.publish(self._batching.backlog)
