"""The lanes and the requests of an engine, and the steps that they make together."""

import functools
import logging
import math
from collections.abc import Callable

import numpy as np

from serving.backlog import Backlog
from serving.denoiser import Denoised, Denoiser
from serving.ending import Ending
from serving.engine_model import Network
from serving.engine_statistics import StepStats
from serving.filling_up import FillingUp
from serving.hand_over import HandOver
from serving.image_cache import ImageCache
from serving.lane_giver import LaneGiver
from serving.lanes import BoolArray, Int64Array, LaneTable
from serving.request import GenerateSpec, Outcome, Sink
from serving.request_book import RequestBook, Ticket
from serving.scheduling import WorkQueue
from serving.sharing import Sharing
from serving.step import Step

logger = logging.getLogger(__name__)

MANY_REQUESTS = 2
"""For each lane that there is: from so many on, all lanes are used. Whoever comes then waits for
far longer than a step takes, and steps of more lanes make better use of the machine."""


class Batching:
    """Requests from open() to their done(), and the batches of their lanes. Not thread-safe.

    Each worker has lanes of its own and makes steps of its own, while the others make theirs. Which
    lanes are whose is decided anew whenever one of them begins a step.

    What a step that raises leaves behind may be in any state: end_all(), and make a new one.

    Attributes:
        denoisers: with the lanes in use, one for each worker; those set aside are common to all.
        queue: who is served.
        book: who is here.
        sharing: of equal images; None if nothing is shared.
    """

    def __init__(
        self,
        denoisers: tuple[Denoiser, ...],
        networks: tuple[Network | None, ...],
        queue: WorkQueue,
        cache: ImageCache | None,
        padded_rows: Callable[[int], int],
        clock: Callable[[], float],
        *,
        together: bool = True,
        usual_lanes: int | None = None,
    ) -> None:
        """Makes it without requests; the cache, None for none, lives longer.

        Args:
            denoisers: one for each worker, beside one another.
            networks: of each worker beside others; None for the denoiser's own.
            queue: for as many workers.
            cache: of finished images.
            padded_rows: rows that are computed for a batch that all workers share.
            clock: seconds.
            together: whether fewer images than workers are computed by all of these together.
            usual_lanes: of all workers, that are used while there are not MANY_REQUESTS; None for
                all.
        """
        self.denoisers = denoisers
        self._networks = networks
        self.queue = queue
        self.book = RequestBook(queue.slots)
        self.sharing = None if cache is None else Sharing(cache, denoisers, queue)
        self._ending = Ending(self.book, queue, denoisers[0].plans, self.sharing, clock)
        self._hand_over = HandOver(self.book, self._ending)
        self._lane_giver = LaneGiver(denoisers, queue, self.book, self._hand_over, self.sharing)
        self._padded_rows = padded_rows
        self._together = together
        self._max_lanes = sum(denoiser.lanes.capacity for denoiser in denoisers)
        self._usual_lanes = self._max_lanes if usual_lanes is None else usual_lanes
        shares = np.array_split(np.arange(self._usual_lanes), len(denoisers))
        self._usual_shares = [max(1, len(share)) for share in shares]
        self._under_way: dict[int, Step] = {}
        self._cancelled: dict[int, str] = {}

    def open(self, ticket: Ticket, spec: GenerateSpec, sink: Sink) -> None:
        """Takes a request in."""
        deadline = math.inf if spec.deadline_seconds is None else spec.deadline_seconds
        slot = self.queue.add(
            ticket.request_id, spec.count, spec.work_per_image, spec.num_steps, deadline
        )
        self.book.open(ticket, spec, sink, slot)

    def cancel(self, request_id: int, detail: str) -> None:
        """Ends a request at the beginning of the next step; unknown ids are ignored."""
        if self.book.get(request_id) is not None:
            self._cancelled.setdefault(request_id, detail)

    @property
    def lanes_in_use(self) -> int:
        """Of all workers."""
        return sum(denoiser.lanes.count for denoiser in self.denoisers)

    @property
    def lanes_offered(self) -> int:
        """That all workers may have at present."""
        return self._max_lanes if self._many else self._usual_lanes

    @property
    def _many(self) -> bool:
        return len(self.book) >= MANY_REQUESTS * self._max_lanes

    @property
    def has_more(self) -> bool:
        """Whether there are images beside those of the steps that are under way."""
        under_way = 0
        for worker in self._under_way:
            lanes = self.denoisers[worker].lanes
            # The queue has forgotten those of requests that ended in the meantime.
            under_way += int(np.count_nonzero(~self.book.ended[lanes.request[: lanes.count]]))
        return self.queue.images > under_way

    @property
    def lanes_aside(self) -> LaneTable:
        """Those that were set aside."""
        return self.denoisers[0].aside.lanes

    @property
    def backlog(self) -> Backlog:
        """The requests at present."""
        shared = 0 if self.sharing is None else self.sharing.images_shared
        return self.queue.backlog(self.lanes_in_use, shared)

    def begin_step(
        self, worker: int, now_seconds: float, filling_up: FillingUp, *, may_be_alone: bool = True
    ) -> Step | None:
        """Ends what is cancelled or has expired, gives a worker its lanes, and begins its step.

        Args:
            worker: that has no step under way.
            now_seconds: of the engine's clock.
            filling_up: how far a step is.
            may_be_alone: whether nobody uses the network.

        Returns:
            None if there was nothing to do.
        """
        stats = StepStats()
        self._end_cancelled_and_expired(now_seconds, stats)
        self._free_lanes(stats)
        lanes = self.denoisers[worker].lanes
        alone, most = self._share_of(worker, may_be_alone=may_be_alone)
        if self.queue.due(worker) or lanes.count > most:
            stats.reviewed = True
            self._lane_giver.give(worker, most, filling_up, now_seconds, stats)
        if lanes.count:
            return self._begin_batch(worker, alone, stats)
        if not stats.requests_done:
            return None
        self._free_lanes(stats)  # of requests that the cache could serve whole
        return Step(worker, stats, batching=self)

    def finish_step(self, step: Step) -> None:
        """Hands over what a step has made, or ends the requests of one that failed."""
        stats, denoiser = step.stats, self.denoisers[step.worker]
        if step.compute is None:
            return
        del self._under_way[step.worker]
        if step.denoised is None:
            logger.error(
                "the network failed for a batch of %d rows", stats.rows_useful, exc_info=step.error
            )
            stats.network_failures = 1
            which = np.arange(denoiser.lanes.count)
            self._fail(
                denoiser.lanes, which, f"the network raised {type(step.error).__name__}", stats
            )
        else:
            self._take_results(denoiser.lanes, step.denoised, stats)
        stats.network_seconds = denoiser.network_seconds
        if step.denoised is not None:
            self._leave(denoiser.lanes, step.denoised.finished, stats)
        self._free_lanes(stats)

    def end_all(self, outcome: Outcome, detail: str) -> StepStats:
        """Ends every request, now, whatever the state of everything; returns what that did."""
        stats = StepStats()
        for request in self.book.all():
            try:
                self._ending.end(request, outcome, detail, stats)
            except Exception:  # done() was said; the others must hear it too
                logger.exception("request %d left something behind", request.ticket.request_id)
        for lanes in (*(denoiser.lanes for denoiser in self.denoisers), self.lanes_aside):
            stats.rows_given_up += int(lanes.rows_computed[: lanes.count].sum())
        return stats

    def _share_of(self, worker: int, *, may_be_alone: bool) -> tuple[bool, int]:
        """Whether a worker steps for all, and how many lanes it may have.

        Images that are fewer than the workers are computed by all of these together, if that is
        sooner. Others are shared out as evenly as their number allows; a little more, for whoever
        has it, does no harm, and to move a lane costs something.
        """
        lanes, workers = self.denoisers[worker].lanes, len(self.denoisers)
        # Of more lanes than are offered, those that come free are not given out again.
        most = lanes.capacity if self._many else max(self._usual_shares[worker], lanes.count)
        if workers == 1:
            return False, most
        images = self.queue.images
        few = images < workers and lanes.count == self.lanes_in_use
        if self._together and may_be_alone and few:
            return True, lanes.capacity
        share = -(-images // workers)
        if share < lanes.count <= share + share // 4:
            share = lanes.count
        return False, min(share, most)

    def _end_cancelled_and_expired(self, now_seconds: float, stats: StepStats) -> None:
        while self._cancelled:
            request_id, detail = self._cancelled.popitem()
            if (request := self.book.get(request_id)) is not None:
                self._ending.end(request, Outcome.CANCELLED, detail, stats)
        for request in self.book.at(self.queue.expired(now_seconds)):
            self._ending.end(request, Outcome.DEADLINE_EXCEEDED, "its deadline passed", stats)

    def _begin_batch(self, worker: int, alone: bool, stats: StepStats) -> Step:
        denoiser, workers = self.denoisers[worker], len(self.denoisers)
        lanes, n = denoiser.lanes, denoiser.lanes.count
        rows = denoiser.lane_rows()
        stats.lanes, stats.rows_useful = n, int(rows.sum())
        stats.kept_short = self.queue.keeps_short[worker]
        if alone:
            stats.rows = self._padded_rows(stats.rows_useful)
        else:
            stats.rows = self._padded_rows(stats.rows_useful * workers) // workers
        lanes.rows_computed[:n] += rows
        self.queue.served(lanes.request[:n], rows, worker)
        denoiser.prepare()
        network = None if alone else self._networks[worker]
        step = Step(
            worker, stats, functools.partial(denoiser.compute, network), alone, batching=self
        )
        self._under_way[worker] = step
        return step

    def _take_results(self, lanes: LaneTable, denoised: Denoised, stats: StepStats) -> None:
        """Previews and images to their sinks; ends requests that are complete or have failed."""
        n = lanes.count
        if denoised.nonfinite.any():
            stats.nonfinite_lanes = int(np.count_nonzero(denoised.nonfinite))
            logger.error("the network gave NaN or Inf for %d of %d lanes", stats.nonfinite_lanes, n)
            which = denoised.nonfinite.nonzero()[0]
            self._fail(lanes, which, "the network gave NaN or Inf", stats)
        self._hand_over.previews(lanes, denoised, stats)
        finished = (denoised.finished & ~self.book.ended[lanes.request[:n]]).nonzero()[0]
        if finished.size:
            self.queue.finished(lanes.request[finished])
            stats.rows_finished = int(lanes.rows_computed[finished].sum())
            lanes.rows_computed[finished] = 0
            self._hand_over.images(lanes, finished, self.sharing, stats)

    def _fail(self, lanes: LaneTable, which: Int64Array, detail: str, stats: StepStats) -> None:
        """Ends the requests of these lanes, and those that share them."""
        failed = self.book.at(np.unique(lanes.request[which]))
        if self.sharing is not None:
            failed += self.sharing.sharers(lanes, which)
        for request in failed:
            self._ending.end(request, Outcome.NETWORK_FAILED, detail, stats)

    def _leave(self, lanes: LaneTable, leaving: BoolArray, stats: StepStats) -> None:
        stats.rows_given_up += lanes.leave(leaving)

    def _free_lanes(self, stats: StepStats) -> None:
        """Frees the lanes of ended requests, and the slots of those that have none under way."""
        if not self.book.any_ended:
            return
        ended, under_way = self.book.ended, [np.zeros(0, dtype=np.int64)]
        for worker, denoiser in enumerate(self.denoisers):
            requests = denoiser.lanes.request[: denoiser.lanes.count]
            if worker in self._under_way:
                under_way.append(requests)
            else:
                self._leave(denoiser.lanes, ended[requests], stats)
        stats.rows_given_up += self.denoisers[0].aside.drop(ended)
        for slot in self.book.free_ended(np.concatenate(under_way)):
            self.queue.free(slot)
