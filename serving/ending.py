"""The end of requests: said to each sink once, and everything let go that was the request's."""

from collections.abc import Callable

from serving.engine_statistics import StepStats
from serving.plan_table import PlanTable
from serving.request import Outcome
from serving.request_book import ActiveRequest, RequestBook, tell_done
from serving.scheduling import WorkQueue
from serving.sharing import Sharing


class Ending:
    """Ends requests. Not thread-safe.

    Whoever can end one has this, and not what holds the lanes: an engine that is dropped must not
    be part of a cycle, or it would keep its network until Python collects garbage.
    """

    def __init__(
        self,
        book: RequestBook,
        queue: WorkQueue,
        plans: PlanTable,
        sharing: Sharing | None,
        clock: Callable[[], float],
    ) -> None:
        self._book = book
        self._queue = queue
        self._plans = plans
        self._sharing = sharing
        self._clock = clock

    def end(self, request: ActiveRequest, outcome: Outcome, detail: str, stats: StepStats) -> None:
        """Says done(), with the detail for the log; harmless for a request that has ended.

        Its lanes are still to be freed, and then its slot (RequestBook.free_ended).
        """
        if not self._book.close(request):
            return
        try:
            self._queue.withdraw(request.slot)
            if self._sharing is not None:
                self._sharing.ended(request)
            if request.plan is not None:
                self._plans.release(request.plan)
            done = stats.requests_done
            done[outcome] = done.get(outcome, 0) + 1
        finally:
            tell_done(request, outcome, self._clock(), detail)
