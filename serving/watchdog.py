"""Keeps readiness true to the engine's thread: not ready while it hangs, failed once it is over."""

import asyncio
import logging
import math
import time
from collections.abc import Callable

from serving.engine_thread import EngineThread
from serving.health import Phase, Readiness

_LOOK_SECONDS = 0.1
_HELD_UP_SECONDS = 0.5
_HANG_EXIT_SECONDS = 30.0

_log = logging.getLogger(__name__)


class Watchdog:
    """Looks at the engine's thread ten times a second. Belongs to the event loop.

    A thread that hangs is inside the network, which nothing can interrupt: it may come back, and
    then the server is ready again; after a while only a new process can help.

    A look that comes late says that the whole process was held up: stopped, or without a processor.
    Silence from before it is not the engine's doing, and begins no hang.
    """

    def __init__(
        self,
        engine_thread: EngineThread,
        readiness: Readiness,
        *,
        hang_exit_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hang_exit_seconds`: how long a hang may last; None for half a minute."""
        self._engine_thread = engine_thread
        self._readiness = readiness
        self._hang_exit_seconds = (
            _HANG_EXIT_SECONDS if hang_exit_seconds is None else hang_exit_seconds
        )
        self._clock = clock
        self._looked_seconds = clock()
        self._held_up_until = -math.inf
        self._hung_since: float | None = None

    async def watch(self) -> str:
        """Returns, in words, why this process cannot go on; Phase.FAILED is set by then."""
        while (reason := self.look()) is None:  # noqa: ASYNC110  (a hang sets no event)
            await asyncio.sleep(_LOOK_SECONDS)
        self._readiness.set(Phase.FAILED)
        return reason

    def look(self) -> str | None:
        """Looks once; returns why this process cannot go on, if it cannot."""
        if not self._engine_thread.alive:
            return "the engine's thread has died"
        now_seconds = self._clock()
        if now_seconds - self._looked_seconds > _HELD_UP_SECONDS:
            self._held_up_until = now_seconds
        self._looked_seconds = now_seconds
        silent_seconds = self._engine_thread.last_step_age_seconds()
        if self._hung_since is None:
            silent_seconds = min(silent_seconds, now_seconds - self._held_up_until)
        if silent_seconds <= self._engine_thread.hang_seconds:
            if self._readiness.phase is Phase.STALLED:
                _log.warning("the engine goes on after %.1f s", self._hung_seconds())
                self._readiness.set(Phase.SERVING)
            self._hung_since = None
            return None
        if self._hung_since is None:
            self._hung_since = now_seconds
            _log.error("the engine has been silent for %.2f s while there is work", silent_seconds)
        if self._readiness.phase is Phase.SERVING:
            self._readiness.set(Phase.STALLED)
        if self._hung_seconds() >= self._hang_exit_seconds:
            return f"the engine's thread has been hanging for {self._hung_seconds():.0f} s"
        return None

    def _hung_seconds(self) -> float:
        return 0.0 if self._hung_since is None else self._clock() - self._hung_since
