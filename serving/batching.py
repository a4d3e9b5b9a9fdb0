"""The lanes and the requests of an engine, and the steps that they make together."""

import logging
import math
from collections.abc import Callable

import numpy as np

from serving.denoiser import Denoised, Denoiser
from serving.ending import Ending
from serving.engine_statistics import StepStats
from serving.filling_up import FillingUp
from serving.hand_over import HandOver
from serving.image_cache import ImageCache
from serving.lane_giver import LaneGiver
from serving.lanes import BoolArray, Int64Array
from serving.request import GenerateSpec, Outcome, Sink
from serving.request_book import RequestBook, Ticket
from serving.scheduling import Backlog, WorkQueue
from serving.sharing import Sharing

logger = logging.getLogger(__name__)


class Batching:
    """Requests from open() to their done(), and a batch of their lanes. Not thread-safe.

    What a step that raises leaves behind may be in any state: end_all(), and make a new one.

    Attributes:
        denoiser: with the lanes, in use and set aside.
        lanes: those in use.
        queue: who is served.
        book: who is here.
        sharing: of equal images; None if nothing is shared.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        queue: WorkQueue,
        cache: ImageCache | None,
        padded_rows: Callable[[int], int],
        clock: Callable[[], float],
    ) -> None:
        """Everything is empty but the cache, which lives longer; None for none."""
        self.denoiser = denoiser
        self.lanes = denoiser.lanes
        self.queue = queue
        self.book = RequestBook(queue.slots)
        self.sharing = None if cache is None else Sharing(cache, denoiser, queue)
        self._ending = Ending(self.book, queue, denoiser.plans, self.sharing, clock)
        self._hand_over = HandOver(self.book, self._ending)
        self._lane_giver = LaneGiver(denoiser, queue, self.book, self._hand_over, self.sharing)
        self._padded_rows = padded_rows
        self._cancelled: dict[int, str] = {}
        self._stats = StepStats()

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
    def backlog(self) -> Backlog:
        """The requests at present."""
        shared = 0 if self.sharing is None else self.sharing.images_shared
        return self.queue.backlog(self.lanes.count, shared)

    def begin_step(self, now_seconds: float, filling_up: FillingUp) -> bool:
        """Ends what is cancelled or has expired; gives out lanes anew, if it is time to.

        Returns:
            whether it was.
        """
        self._stats = StepStats()
        self._end_cancelled_and_expired(now_seconds)
        self._free_lanes()
        if not self.queue.due:
            return False
        self._lane_giver.give(filling_up, now_seconds, self._stats)
        return True

    def finish_step(self) -> StepStats | None:
        """Advances all lanes; None if there was nothing to do since begin_step()."""
        stats = self._stats
        if self.lanes.count:
            self._run_batch(stats)
        elif stats.requests_done:
            self._free_lanes()  # of requests that the cache could serve whole
        else:
            return None
        return stats

    def end_all(self, outcome: Outcome, detail: str) -> StepStats:
        """Ends every request, now, whatever the state of everything; returns what that did."""
        self._stats = StepStats()
        for request in self.book.all():
            try:
                self._ending.end(request, outcome, detail, self._stats)
            except Exception:  # done() was said; the others must hear it too
                logger.exception("request %d left something behind", request.ticket.request_id)
        for lanes in (self.lanes, self.denoiser.aside.lanes):
            self._stats.rows_given_up += int(lanes.rows_computed[: lanes.count].sum())
        return self._stats

    def _end_cancelled_and_expired(self, now_seconds: float) -> None:
        while self._cancelled:
            request_id, detail = self._cancelled.popitem()
            if (request := self.book.get(request_id)) is not None:
                self._ending.end(request, Outcome.CANCELLED, detail, self._stats)
        for request in self.book.at(self.queue.expired(now_seconds)):
            self._ending.end(request, Outcome.DEADLINE_EXCEEDED, "its deadline passed", self._stats)

    def _run_batch(self, stats: StepStats) -> None:
        lanes, n = self.lanes, self.lanes.count
        slots, rows = lanes.request[:n].copy(), self.denoiser.lane_rows()
        stats.lanes, stats.rows_useful = n, int(rows.sum())
        stats.kept_short = self.queue.keeps_short
        stats.rows = self._padded_rows(stats.rows_useful)
        lanes.rows_computed[:n] += rows
        self.queue.served(slots, rows)
        finished = None
        try:
            denoised = self.denoiser.step()
        except Exception as error:
            logger.exception("the network failed for a batch of %d rows", stats.rows_useful)
            stats.network_failures = 1
            self._fail(np.arange(n), f"the network raised {type(error).__name__}")
        else:
            self._take_results(denoised, stats)
            finished = denoised.finished
        stats.network_seconds = self.denoiser.network_seconds
        self._free_lanes(finished)

    def _take_results(self, denoised: Denoised, stats: StepStats) -> None:
        """Previews and images to their sinks; ends requests that are complete or have failed."""
        lanes, n = self.lanes, self.lanes.count
        if denoised.nonfinite.any():
            stats.nonfinite_lanes = int(np.count_nonzero(denoised.nonfinite))
            logger.error("the network gave NaN or Inf for %d of %d lanes", stats.nonfinite_lanes, n)
            self._fail(denoised.nonfinite.nonzero()[0], "the network gave NaN or Inf")
        self._hand_over.previews(lanes, denoised, stats)
        finished = (denoised.finished & ~self.book.ended[lanes.request[:n]]).nonzero()[0]
        if finished.size:
            self.queue.finished(lanes.request[finished])
            stats.rows_finished = int(lanes.rows_computed[finished].sum())
            lanes.rows_computed[finished] = 0
            self._hand_over.images(lanes, finished, self.sharing, stats)

    def _fail(self, which: Int64Array, detail: str) -> None:
        """Ends the requests of these lanes, and those that share them."""
        lanes = self.lanes
        failed = self.book.at(np.unique(lanes.request[which]))
        if self.sharing is not None:
            failed += self.sharing.sharers(lanes, which)
        for request in failed:
            self._ending.end(request, Outcome.NETWORK_FAILED, detail, self._stats)

    def _free_lanes(self, finished: BoolArray | None = None) -> None:
        """Frees the lanes of ended requests and the finished ones, then the requests' slots."""
        lanes, ended = self.lanes, self.book.ended
        if self.book.any_ended:
            leaving = ended[lanes.request[: lanes.count]]
            given_up = lanes.leave(leaving if finished is None else leaving | finished)
            self._stats.rows_given_up += given_up + self.denoiser.aside.drop(ended)
        elif finished is not None:
            lanes.leave(finished)
        for slot in self.book.free_ended():
            self.queue.free(slot)
