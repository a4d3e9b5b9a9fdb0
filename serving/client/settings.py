"""What a client is told once and uses for every call; the same for both clients."""

import time
from dataclasses import dataclass

from serving.client.connection import Metadata, call_metadata, split_targets
from serving.client.retry import Attempts, RetryPolicy, Rotation

HEALTH_POLL_SECONDS = 0.1
_HEALTH_CHECK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked arguments of `Client` and `AsyncClient`."""

    target: str
    rotation: Rotation
    timeout_seconds: float
    retry: RetryPolicy | None
    wait_for_ready: bool
    metadata: Metadata

    @classmethod
    def make(
        cls,
        target: str,
        timeout_seconds: float,
        retry: RetryPolicy | None,
        wait_for_ready: bool,
        token: str | None,
    ) -> "Settings":
        """Raises ValueError for a target, timeout or token that makes no sense."""
        if not timeout_seconds > 0:
            raise ValueError(f"timeout_seconds must be above 0, got {timeout_seconds:g}")
        rotation = Rotation(split_targets(target))
        metadata = call_metadata(token)
        return cls(target, rotation, timeout_seconds, retry, wait_for_ready, metadata)

    def attempts(self, timeout_seconds: float | None) -> Attempts:
        """Begins a call. Raises ValueError for a time that is not above 0."""
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        return Attempts(self.rotation, self.retry, seconds, wait_for_ready=self.wait_for_ready)

    def health_attempts(self, timeout_seconds: float | None) -> Attempts:
        """Begins a question about health: each server is asked once, none is waited for."""
        seconds = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        policy = RetryPolicy(max_attempts=len(self.rotation.targets))
        return Attempts(self.rotation, policy, seconds)


def health_check_seconds(end_seconds: float) -> float:
    """Returns how long one question of a wait that ends then may take; above 0."""
    left = end_seconds - time.monotonic()
    return min(_HEALTH_CHECK_SECONDS, max(left, HEALTH_POLL_SECONDS))
