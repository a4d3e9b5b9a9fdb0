"""Keeps readiness true to the engine's threads: not ready while one hangs, failed once all end."""

import asyncio
import logging
import time
from collections.abc import Callable

from serving.engine_threads import EngineThreads
from serving.health import Phase, Readiness

_LOOK_SECONDS = 0.1
_LATE_SECONDS = 2 * _LOOK_SECONDS  # after the look before: it counts as no more than that
_HANG_EXIT_SECONDS = 30.0

_log = logging.getLogger(__name__)


class Watchdog:
    """Looks at the engine's threads ten times a second. Belongs to the event loop.

    A thread that hangs is inside the network, which nothing can interrupt: it may come back, and
    then the server is ready again; after a while only a new process can help.

    Silence is as long as the watchdog has listened: time in which the whole process was held up,
    stopped or without a processor, is not the engine's doing.
    """

    def __init__(
        self,
        engine_threads: EngineThreads,
        readiness: Readiness,
        *,
        hang_exit_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hang_exit_seconds`: how long a hang may last; None for half a minute."""
        self._engine_threads = engine_threads
        self._readiness = readiness
        self._hang_exit_seconds = (
            _HANG_EXIT_SECONDS if hang_exit_seconds is None else hang_exit_seconds
        )
        self._clock = clock
        self._looked_seconds = clock()
        self._silent_seconds = 0.0
        self._hung_since: float | None = None

    async def watch(self) -> str:
        """Returns, in words, why this process cannot go on; Phase.FAILED is set by then."""
        while (reason := self.look()) is None:  # noqa: ASYNC110  (a hang sets no event)
            await asyncio.sleep(_LOOK_SECONDS)
        self._readiness.set(Phase.FAILED)
        return reason

    def look(self) -> str | None:
        """Looks once; returns why this process cannot go on, if it cannot."""
        if not self._engine_threads.alive:
            return "the engine's thread has died"
        silent_seconds = self._listen()
        if silent_seconds <= self._engine_threads.hang_seconds:
            if self._readiness.phase is Phase.STALLED:
                _log.warning("the engine goes on after %.1f s", self._hung_seconds())
                self._readiness.set(Phase.SERVING)
            self._hung_since = None
            return None
        if self._hung_since is None:
            self._hung_since = self._clock()
            _log.error("the engine has been silent for %.2f s while there is work", silent_seconds)
        if self._readiness.phase is Phase.SERVING:
            self._readiness.set(Phase.STALLED)
        if self._hung_seconds() >= self._hang_exit_seconds:
            return f"the engine's thread has been hanging for {self._hung_seconds():.0f} s"
        return None

    def _listen(self) -> float:
        """Returns for how long the engine has been silent, as far as this has listened."""
        now_seconds, age_seconds = self._clock(), self._engine_threads.last_step_age_seconds()
        since_seconds = now_seconds - self._looked_seconds
        if age_seconds < since_seconds:  # a sign of life since the last look
            self._silent_seconds, since_seconds = 0.0, age_seconds
        self._silent_seconds += min(since_seconds, _LATE_SECONDS)
        self._looked_seconds = now_seconds
        return self._silent_seconds

    def _hung_seconds(self) -> float:
        return 0.0 if self._hung_since is None else self._clock() - self._hung_since
