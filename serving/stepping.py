"""The steps of the engines, for whoever owns them: whose turn it is, and what if one breaks."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping

from serving.engine import Engine, Step, StepStats
from serving.request import Outcome
from serving.turns import Seat, Turns

logger = logging.getLogger(__name__)

RESTART_WINDOW_SECONDS = 600.0
"""Restarts that are longer ago are forgiven."""


class Stepping:
    """Begins and finishes steps. Not thread-safe: for one owner of the engines at a time.

    A step that raises (a network that does is not that: see Engine.finish) costs the requests of
    its engine, which then starts anew. After `max_restarts` of them within RESTART_WINDOW_SECONDS
    the next one is raised here: it is the end of all.

    Attributes:
        turns: the engines, and which of them is next.
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
        """Has no step under way.

        Args:
            engines: by model name.
            on_step: called after each step; what it raises is logged.
            on_restart: called so with the name of a model whose engine has to start anew.
            max_restarts: 0 or more.
            clock: seconds.
        """
        self.turns = Turns(engines)
        self._on_step = on_step
        self._on_restart = on_restart
        self._max_restarts = max_restarts
        self._clock = clock
        self._restarts: deque[float] = deque()
        self._under_way: dict[Step, tuple[Seat, float]] = {}  # whose, since when

    @property
    def under_way(self) -> bool:
        """Whether a step is that was begun and is not finished."""
        return bool(self._under_way)

    @property
    def can_begin(self) -> bool:
        """Whether there may be another step to begin now."""
        return any(seat.engine.can_begin for seat in self.turns.seats)

    def begin(self) -> Step | None:
        """Begins a step of the engine whose turn it is; None if none can."""
        passed: set[Seat] = set()
        while (seat := self.turns.next(passed)) is not None:
            begin = self._clock()
            try:
                step = seat.engine.begin()
            except Exception as error:  # noqa: BLE001  (logged there, or raised again)
                self._restart(seat, error)
                continue
            if step is not None:
                self._under_way[step] = seat, begin
                return step
            passed.add(seat)
        return None

    def finish(self, step: Step) -> None:
        """Finishes a step that was computed."""
        seat, begin = self._under_way.pop(step)
        try:
            stats = seat.engine.finish(step)
        except Exception as error:  # noqa: BLE001  (logged there, or raised again)
            self._restart(seat, error)
        else:
            self._tell_step(seat, stats)
        seat.spent_seconds += self._clock() - begin

    def end_all(self, outcome: Outcome, detail: str) -> None:
        """Says done() to every request of every engine."""
        for seat in self.turns.seats:
            try:
                seat.engine.end_all(outcome, detail)
            except Exception:  # an engine whose step raised may be in any state
                logger.exception("ending the requests of %s", seat.model)

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
        self._tell_step(
            seat,
            seat.engine.end_all(
                Outcome.NETWORK_FAILED, f"the engine broke: {type(error).__name__}"
            ),
        )

    def _tell_step(self, seat: Seat, stats: StepStats) -> None:
        if self._on_step is not None:
            _call(self._on_step, seat.model, stats)


def _call(observer: Callable[..., None], *arguments: object) -> None:
    """Tells somebody who must not be able to harm the engine."""
    try:
        observer(*arguments)
    except Exception:
        logger.exception("an observer of the engine raised")
