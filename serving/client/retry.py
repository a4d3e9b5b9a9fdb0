"""Whether, where and when a failed call is tried again."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.client.errors import ClientError, deadline_exceeded

_AVOID_SECONDS = 1.0
"""A server that could not be reached is passed over for so long while there are others."""

_PUSHBACK_SPREAD = 0.1
"""Callers that were refused together come back within this share of the wait asked for."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a call is tried, and how long is waited in between.

    Tried again are UNAVAILABLE, and RESOURCE_EXHAUSTED if the server said when to come back
    (without that it is gRPC's word for a message that is too large). The wait before attempt n + 2
    is drawn from 0 .. min(max_backoff, initial_backoff * multiplier**n) seconds, or is the one that
    the server asked for. A call whose time would be over before ends at once.

    Attributes:
        max_attempts: of one call, the first included; an attempt that brought images counts anew.
        initial_backoff_seconds: above 0.
        max_backoff_seconds: at least initial_backoff_seconds.
        backoff_multiplier: 1 or more.
    """

    max_attempts: int = 5
    initial_backoff_seconds: float = 0.1
    max_backoff_seconds: float = 5.0
    backoff_multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
        if not 0 < self.initial_backoff_seconds <= self.max_backoff_seconds:
            raise ValueError(
                "initial_backoff_seconds must be above 0 and at most max_backoff_seconds"
                f" {self.max_backoff_seconds:g}, got {self.initial_backoff_seconds:g}"
            )
        if self.backoff_multiplier < 1:
            raise ValueError(
                f"backoff_multiplier must be at least 1, got {self.backoff_multiplier:g}"
            )

    def longest_backoff_seconds(self, waits: int) -> float:
        """The upper end of the wait after so many earlier ones, in seconds.

        Args:
            waits: of the call so far, 0 or more.
        """
        # The exponent is bounded, or a call that waits for hours would overflow a float.
        grown = self.initial_backoff_seconds * self.backoff_multiplier ** min(waits, 64)
        return min(self.max_backoff_seconds, grown)


DEFAULT_RETRY = RetryPolicy()


class Rotation:
    """Takes the targets in turn, passing over those that could not be reached lately.

    Safe to use from several threads.
    """

    def __init__(self, targets: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._targets = tuple(targets)
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0
        self._avoided_until = dict.fromkeys(self._targets, float("-inf"))

    @property
    def targets(self) -> tuple[str, ...]:
        """All of them."""
        return self._targets

    def take(self) -> str:
        """Returns the target whose turn it is; of those that are all avoided, the longest ago."""
        with self._lock:
            now = self._clock()
            turn = self._targets[self._next :] + self._targets[: self._next]
            chosen = min(turn, key=lambda target: max(self._avoided_until[target], now))
            self._next = (self._targets.index(chosen) + 1) % len(self._targets)
            return chosen

    def avoid(self, target: str) -> None:
        """Passes over this target for a while."""
        with self._lock:
            self._avoided_until[target] = self._clock() + _AVOID_SECONDS


class Attempts:
    """One call, with all its attempts. Belongs to whoever makes the call.

    Attributes:
        target: where the current attempt goes.
    """

    def __init__(
        self,
        rotation: Rotation,
        policy: RetryPolicy | None,
        timeout_seconds: float,
        *,
        wait_for_ready: bool = False,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Begins the first attempt.

        Args:
            rotation: where attempts may go.
            policy: None for a single attempt.
            timeout_seconds: for all attempts and waits together, above 0.
            wait_for_ready: whether UNAVAILABLE is tried again for as long as there is time.
            clock: seconds, monotonic.
            uniform: draws a number between two others.
        """
        if not timeout_seconds > 0:
            raise ValueError(f"timeout_seconds must be above 0, got {timeout_seconds:g}")
        self._rotation = rotation
        self._policy = policy
        self._wait_for_ready = wait_for_ready
        self._clock = clock
        self._uniform = uniform
        self._end_seconds = clock() + timeout_seconds
        self._failures = 0
        self._waits = 0
        self._untried = len(rotation.targets) - 1
        self.target = rotation.take()

    def remaining_seconds(self) -> float:
        """Returns the time that is left for this attempt.

        Raises:
            DeadlineExceededError: if there is none.
        """
        remaining = self._end_seconds - self._clock()
        if remaining <= 0:
            raise deadline_exceeded(self.target)
        return remaining

    def progressed(self) -> None:
        """The current attempt has brought something: what comes next is not its fault."""
        self._failures = 0
        self._waits = 0
        self._untried = len(self._rotation.targets) - 1

    def after(self, error: ClientError) -> float:
        """Chooses the next attempt after a failure; returns the seconds to wait before it.

        Raises:
            ClientError: `error`, if there is to be no next attempt.
        """
        self._failures += 1
        try:
            unavailable = error.code == "UNAVAILABLE"
            if unavailable:
                self._rotation.avoid(self.target)
            if not self._may_retry(error):
                raise error
            wait_seconds = self._wait_seconds(error, unavailable)
            if self._clock() + wait_seconds >= self._end_seconds:
                raise error
        finally:
            # Else the error holds this frame, and this frame the error: the call, and with it the
            # connection of a client that was closed, would live until the garbage is collected.
            del error
        self.target = self._rotation.take()
        return wait_seconds

    def _may_retry(self, error: ClientError) -> bool:
        if self._policy is None:
            return False
        if error.code == "UNAVAILABLE" and self._wait_for_ready:
            return True
        retryable = error.code == "UNAVAILABLE" or (
            error.code == "RESOURCE_EXHAUSTED" and error.retry_after_seconds is not None
        )
        return retryable and self._failures < self._policy.max_attempts

    def _wait_seconds(self, error: ClientError, unavailable: bool) -> float:
        assert self._policy is not None
        if error.retry_after_seconds is not None:
            asked = error.retry_after_seconds
            return asked + self._uniform(0.0, _PUSHBACK_SPREAD * asked)
        if unavailable and self._untried:
            self._untried -= 1  # another server may well answer now
            return 0.0
        self._untried = len(self._rotation.targets) - 1
        longest = self._policy.longest_backoff_seconds(self._waits)
        self._waits += 1
        return self._uniform(0.0, longest)
