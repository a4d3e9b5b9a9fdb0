"""One thread that owns every engine: hands requests over, steps engines in turn, dies loudly."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serving.engine import Engine, StepStats, Ticket
from serving.request import GenerateSpec, Outcome, Sink
from serving.turns import Seat, Turns

logger = logging.getLogger(__name__)


RESTART_WINDOW_SECONDS = 600.0
"""Restarts that are longer ago are forgiven."""

HANG_SECONDS = 0.75
"""Silence that is a hang, on networks whose steps are short."""

HANG_STEPS = 8
"""Silence that is a hang, on slow networks: so many times the longest step."""

_UNMEASURED_HANG_SECONDS = 60.0


class EngineUnavailable(Exception):
    """The engine thread takes no requests; the message says why."""


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


class EngineThread:
    """Runs engines, one per model, on one thread. Every method is safe from any thread.

    Of the engines with work the one steps next that has had the least of the thread's time, so that
    models share it equally whatever their steps cost. Every request that submit() accepted gets
    exactly one Sink.done(), on the engine's thread: also if a step raises (NETWORK_FAILED) or the
    thread is stopped (CANCELLED).

    A step that raises (a network that does is not that: see Engine.step) costs the requests of its
    engine, which then starts anew; those that are on their way to it, and the other engines, go on.
    After `max_restarts` of them within RESTART_WINDOW_SECONDS the next one is the thread's end.
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
        """Makes a thread that is not started.

        Args:
            engines: by model name. From start() on, they are the thread's alone.
            on_step: called on the engine's thread after each step; what it raises is logged.
            on_restart: called there with the name of a model whose engine has to start anew.
            max_restarts: 0 or more.
            clock: seconds, for ages.
        """
        self._engines = dict(engines)
        self._turns = Turns(self._engines)
        self._on_step = on_step
        self._on_restart = on_restart
        self._max_restarts = max_restarts
        self._restarts: deque[float] = deque()
        self._clock = clock
        self._condition = threading.Condition()
        self._inbox: deque[_Submission | _Cancellation] = deque()
        self._refusal: str | None = None  # why nothing is accepted any more
        self._stopping = False
        self._idle = True
        self._ended = False
        self._beat_seconds = clock()
        self._warm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The engines by model name that take new requests."""
        return self._engines

    @property
    def alive(self) -> bool:
        """Whether the thread runs: False before start() and once it was stopped or has died."""
        return self._thread.is_alive() and not self._ended

    def start(self) -> None:
        """Starts the thread, and waits until it is warm. Requests submitted before wait for it."""
        self._thread.start()
        self._warm.wait()

    def submit(self, model: str, spec: GenerateSpec, sink: Sink) -> Handle:
        """Accepts a request, in microseconds.

        Raises:
            KeyError: for an unknown model.
            QueueFull, ValueError: from Engine.reserve.
            EngineUnavailable: while draining, and after the end.
        """
        engine = self._engines[model]
        with self._condition:
            if self._refusal is not None:
                raise EngineUnavailable(self._refusal)
            ticket = engine.reserve(spec)
            self._post(_Submission(engine, ticket, spec, sink))
        return Handle(model, ticket.request_id, engine)

    def cancel(self, handle: Handle) -> None:
        """Ends a request before the next engine step. Idempotent; done() still comes."""
        with self._condition:
            if not self._ended:
                self._post(_Cancellation(handle.engine, handle.request_id))

    def replace(self, model: str, engine: Engine) -> None:
        """Gives a model another engine. What the one before has accepted is finished there."""
        with self._condition:
            self._engines = {**self._engines, model: engine}
            self._turns.join(model, engine)

    def last_step_age_seconds(self) -> float:
        """Seconds since the last sign of life while there is work; 0 while there is none."""
        with self._condition:
            if self._idle and not self._inbox:
                return 0.0
            return max(0.0, self._clock() - self._beat_seconds)

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
        with self._condition:
            self._refusal = self._refusal or "draining"
            return self._condition.wait_for(
                lambda: self._ended or (self._idle and not self._inbox), timeout_seconds
            )

    def stop(self, timeout_seconds: float | None = None) -> bool:
        """Ends what is left (CANCELLED) after the step in progress; whether the thread has ended.

        Not to be called on the engine's thread. Idempotent.
        """
        with self._condition:
            self._refusal = "stopped" if self._refusal in {None, "draining"} else self._refusal
            self._stopping = True
            self._condition.notify_all()
        if self._thread.ident is None:  # never started: nobody else will end its requests
            if not self._ended:
                self._end_all(Outcome.CANCELLED, "the engine was stopped")
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _post(self, message: _Submission | _Cancellation) -> None:
        """Hands a message over; the lock is held."""
        if self._idle and not self._inbox:
            self._beat_seconds = self._clock()  # the time without work does not count as silence
        self._inbox.append(message)
        self._condition.notify_all()

    def _run(self) -> None:
        outcome, detail = Outcome.CANCELLED, "the engine was stopped"
        try:
            for engine in self._engines.values():
                engine.warm_up()
            self._warm.set()
            while self._take_messages():
                self._step_next()
        except BaseException as error:
            logger.exception("the engine's thread died")
            outcome, detail = Outcome.NETWORK_FAILED, f"the engine died of {type(error).__name__}"
        finally:
            self._end_all(outcome, detail)
            self._warm.set()

    def _take_messages(self) -> bool:
        """Waits for work and applies the messages; False when the thread is to end."""
        with self._condition:
            self._idle = not self._turns.has_work
            while self._idle and not self._inbox and not self._stopping:
                self._dismiss_replaced()
                self._condition.notify_all()  # whoever waits in drain()
                self._condition.wait()
            if self._stopping:
                return False
            self._beat_seconds = self._clock()
            # Applied under the lock: a message is in the inbox or in its engine, never in between.
            self._idle = False
            while self._inbox:
                self._inbox[0].apply()
                self._inbox.popleft()
            self._dismiss_replaced()
        return True

    def _dismiss_replaced(self) -> None:
        """Lets go of engines that were replaced and are done; nothing is on its way to them."""
        self._turns.dismiss_all_but(self._engines.values())

    def _step_next(self) -> None:
        """One step of the engine whose turn it is."""
        seat = self._turns.next()
        if seat is None:
            return
        begin = self._clock()
        try:
            stats = seat.engine.step()
        except Exception as error:  # noqa: BLE001  (logged there, or raised again)
            self._restart(seat, error)
        else:
            if stats is not None and self._on_step is not None:
                _call(self._on_step, seat.model, stats)
        self._beat_seconds = self._clock()
        seat.spent_seconds += self._beat_seconds - begin

    def _restart(self, seat: Seat, error: Exception) -> None:
        """Starts an engine anew whose step has raised, unless that has happened too often."""
        now = self._clock()
        while self._restarts and now - self._restarts[0] > RESTART_WINDOW_SECONDS:
            self._restarts.popleft()
        if len(self._restarts) >= self._max_restarts:
            raise error
        self._restarts.append(now)
        logger.error("the engine of %s broke and starts anew", seat.model, exc_info=error)
        if self._on_restart is not None:
            _call(self._on_restart, seat.model)
        detail = f"the engine broke: {type(error).__name__}"
        stats = seat.engine.end_all(Outcome.NETWORK_FAILED, detail)
        if self._on_step is not None:
            _call(self._on_step, seat.model, stats)

    def _end_all(self, outcome: Outcome, detail: str) -> None:
        """Says done() to every request that is left, and refuses new ones from now on."""
        with self._condition:
            self._refusal = self._refusal if self._refusal and self._stopping else detail
            self._ended = True
            left = [message for message in self._inbox if isinstance(message, _Submission)]
            self._inbox.clear()
        for seat in self._turns.seats:
            try:
                seat.engine.end_all(outcome, detail)
            except Exception:  # an engine whose step raised may be in any state
                logger.exception("ending the requests of %s", seat.model)
        for message in left:
            self._say_done(message, outcome, detail)
        with self._condition:
            self._condition.notify_all()

    def _say_done(self, submission: _Submission, outcome: Outcome, detail: str) -> None:
        queue_seconds = self._clock() - submission.ticket.submitted_seconds
        try:
            submission.sink.done(outcome, queue_seconds, 0.0, detail)
        except Exception:
            logger.exception("the sink of request %d raised", submission.ticket.request_id)


def _call(observer: Callable[..., None], *arguments: object) -> None:
    """Tells somebody who must not be able to harm the engine."""
    try:
        observer(*arguments)
    except Exception:
        logger.exception("an observer of the engine raised")
