"""The threads that own every engine: hand requests over, step engines in turn, die loudly."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serving.engine import Engine, Step, StepStats, Ticket
from serving.request import GenerateSpec, Outcome, Sink
from serving.stepping import Stepping

logger = logging.getLogger(__name__)


HANG_SECONDS = 0.75
"""Silence that is a hang, on networks whose steps are short."""

HANG_STEPS = 8
"""Silence that is a hang, on slow networks: so many times the longest step."""

_UNMEASURED_HANG_SECONDS = 60.0
_STOPPED = "the engine was stopped"


class EngineUnavailable(Exception):
    """The engine takes no requests; the message says why."""


@dataclass(frozen=True, slots=True)
class Handle:
    """An accepted request."""

    model: str
    request_id: int
    engine: Engine


@dataclass(frozen=True, slots=True)
class _Submission:
    engine: Engine
    ticket: Ticket
    spec: GenerateSpec
    sink: Sink

    def apply(self) -> None:
        self.engine.enqueue(self.ticket, self.spec, self.sink)


@dataclass(frozen=True, slots=True)
class _Cancellation:
    engine: Engine
    request_id: int

    def apply(self) -> None:
        self.engine.cancel(self.request_id)


class EngineThreads:
    """Runs engines, one per model. Every method is safe from any thread.

    As many threads as an engine has workers take turns at owning the engines: each finishes the
    step that it has computed, begins another one, and lets go of them to compute it. So no thread
    has to wake another for the next step, and none waits for another at the end of one.

    Of the engines with work the one steps next that has had the least of the threads' time, so that
    models share it equally whatever their steps cost. Every request that submit() accepted gets
    exactly one Sink.done(), on one of these threads: also if a step raises (NETWORK_FAILED) or the
    threads are stopped (CANCELLED).

    A step that raises costs the requests of its engine, which then starts anew (serving.stepping);
    those that are on their way to it, and the other engines, go on.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        *,
        on_step: Callable[[str, StepStats], None] | None = None,
        on_restart: Callable[[str], None] | None = None,
        max_restarts: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes threads that are not started.

        Args:
            engines: by model name. From start() on, they are the threads' alone.
            on_step: called after each step by whoever owns the engines; what it raises is logged.
            on_restart: called so with the name of a model whose engine has to start anew.
            max_restarts: 0 or more.
            clock: seconds, for ages.
        """
        self._engines = dict(engines)
        self._stepping = Stepping(
            self._engines,
            on_step=on_step,
            on_restart=on_restart,
            max_restarts=max_restarts,
            clock=clock,
        )
        self._clock = clock
        # Who holds the first owns the engines. The other guards what everybody sees, and is held
        # for microseconds; if both are held, the first was taken first.
        self._ownership = threading.Lock()
        self._lock = threading.Lock()
        self._news_came = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        self._inbox: deque[_Submission | _Cancellation] = deque()
        self._posted_seconds = math.inf  # when the first message in it came
        self._news = 0  # counts what may have given a thread something to do
        self._refusal: str | None = None  # why nothing is accepted any more
        self._stopping = False
        self._idle = True
        self._ended = False
        self._warm = threading.Event()  # all threads are, or one has ended before it was
        size = max((engine.workers for engine in self._engines.values()), default=1)
        self._busy_since = [math.inf] * size  # of each thread; infinity while it waits
        self._running = self._cold = size
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"engine-{number}", daemon=True)
            for number in range(size)
        ]

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The engines by model name that take new requests."""
        return self._engines

    @property
    def alive(self) -> bool:
        """Whether they run: False before start() and once they were stopped or one has died."""
        return not self._ended and any(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Starts the threads, and waits until all is warm. Requests submitted before wait too."""
        for thread in self._threads:
            thread.start()
        self._warm.wait()

    def submit(self, model: str, spec: GenerateSpec, sink: Sink) -> Handle:
        """Accepts a request, in microseconds.

        Raises:
            KeyError: for an unknown model.
            QueueFull, ValueError: from Engine.reserve.
            EngineUnavailable: while draining, and after the end.
        """
        engine = self._engines[model]
        with self._lock:
            if self._refusal is not None:
                raise EngineUnavailable(self._refusal)
            ticket = engine.reserve(spec)
            self._post(_Submission(engine, ticket, spec, sink))
        return Handle(model, ticket.request_id, engine)

    def cancel(self, handle: Handle) -> None:
        """Ends a request before the next engine step. Idempotent; done() still comes."""
        with self._lock:
            if not self._ended:
                self._post(_Cancellation(handle.engine, handle.request_id))

    def replace(self, model: str, engine: Engine) -> None:
        """Gives a model another engine. What the one before has accepted is finished there."""
        with self._lock:
            self._engines = {**self._engines, model: engine}
            self._stepping.turns.join(model, engine)
            self._tell()  # the one before may have nothing to do any more

    def last_step_age_seconds(self) -> float:
        """Seconds since the oldest of what is under way was begun; 0 while there is no work.

        That is a step, the work between two, or a message that nobody has looked at.
        """
        with self._lock:
            if self._idle and not self._inbox:
                return 0.0
            return max(0.0, self._clock() - min(self._posted_seconds, *self._busy_since))

    @property
    def hang_seconds(self) -> float:
        """The age of the last sign of life from which on this is a hang; see HANG_SECONDS."""
        expected = [engine.longest_step_seconds for engine in self._engines.values()]
        longest = max((each for each in expected if each is not None), default=None)
        if longest is None:
            return _UNMEASURED_HANG_SECONDS
        return max(HANG_SECONDS, HANG_STEPS * longest)

    def drain(self, timeout_seconds: float | None = None) -> bool:
        """Accepts nothing more and waits until all that was accepted is done; whether it is."""
        with self._lock:
            self._refusal = self._refusal or "draining"
            return self._all_done.wait_for(
                lambda: self._ended or (self._idle and not self._inbox), timeout_seconds
            )

    def stop(self, timeout_seconds: float | None = None) -> bool:
        """Ends what is left (CANCELLED) after the steps under way; whether all threads have ended.

        Not to be called on one of them. Idempotent.
        """
        with self._lock:
            self._refusal = "stopped" if self._refusal in {None, "draining"} else self._refusal
            self._stopping = True
            self._news_came.notify_all()
        if self._threads[0].ident is None:  # never started: nobody else will end its requests
            if not self._ended:
                self._end_all(Outcome.CANCELLED, _STOPPED)
            return True
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _post(self, message: _Submission | _Cancellation) -> None:
        """Hands a message over; the lock is held."""
        if not self._inbox:
            self._posted_seconds = self._clock()
        self._inbox.append(message)
        self._tell()

    def _tell(self) -> None:
        """There may be something to do for one thread more; the lock is held."""
        self._news += 1
        self._news_came.notify()

    def _run(self, number: int) -> None:
        try:
            self._warm_up()
            step: Step | None = None
            while not self._stopping:
                news = self._news
                self._busy_since[number] = self._clock()
                step = self._own(step)
                if step is None:
                    self._wait(number, news)
                else:
                    step.run()
            if step is not None:
                with self._ownership:
                    self._stepping.finish(step)
        except BaseException as error:
            logger.exception("a thread of the engine died")
            with self._lock:
                self._stopping = True
                self._news_came.notify_all()
            with self._ownership:
                if not self._ended:
                    detail = f"the engine died of {type(error).__name__}"
                    self._end_all(Outcome.NETWORK_FAILED, detail)
        finally:
            self._leave()

    def _warm_up(self) -> None:
        """Warms the engines up for this thread, and waits until all threads have done so."""
        with self._ownership:
            for engine in self._engines.values():
                engine.warm_up()
            self._cold -= 1
            if not self._cold:
                self._warm.set()
        self._warm.wait()

    def _leave(self) -> None:
        """One thread less; the last one ends what is left."""
        self._warm.set()
        with self._lock:
            self._running -= 1
            is_last = self._running == 0 and not self._ended
        if is_last:
            self._end_all(Outcome.CANCELLED, _STOPPED)

    def _own(self, step: Step | None) -> Step | None:
        """Owns the engines for a moment: finishes a step, and begins another one if it can."""
        with self._ownership:
            if self._ended:
                return None
            if step is not None:
                self._stepping.finish(step)
            with self._lock:
                # Applied under the lock: a message is in the inbox or in its engine, never between.
                self._idle = False
                while self._inbox:
                    self._inbox[0].apply()
                    self._inbox.popleft()
                self._posted_seconds = math.inf
                self._stepping.turns.dismiss_all_but(self._engines.values())
            step = self._stepping.begin()
            with self._lock:
                if not self._stepping.under_way:
                    self._idle = not self._stepping.turns.has_work
                    self._all_done.notify_all()
                elif step is not None and self._stepping.can_begin:
                    self._tell()  # there may be more than one thread can do
        return step

    def _wait(self, number: int, news: int) -> None:
        """Waits until there is something that this thread had not seen."""
        with self._lock:
            self._busy_since[number] = math.inf
            while self._news == news and not self._stopping:
                self._news_came.wait()

    def _end_all(self, outcome: Outcome, detail: str) -> None:
        """Says done() to every request that is left, and refuses new ones from now on."""
        with self._lock:
            self._refusal = self._refusal if self._refusal and self._stopping else detail
            self._ended = True
            left = [message for message in self._inbox if isinstance(message, _Submission)]
            self._inbox.clear()
        self._stepping.end_all(outcome, detail)
        for message in left:
            self._say_done(message, outcome, detail)
        with self._lock:
            self._all_done.notify_all()

    def _say_done(self, submission: _Submission, outcome: Outcome, detail: str) -> None:
        queue_seconds = self._clock() - submission.ticket.submitted_seconds
        try:
            submission.sink.done(outcome, queue_seconds, 0.0, detail)
        except Exception:
            logger.exception("the sink of request %d raised", submission.ticket.request_id)
