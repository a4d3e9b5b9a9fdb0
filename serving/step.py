"""An engine step while it is made: an engine begins it, any thread computes it, it is finished."""

from collections.abc import Callable
from dataclasses import dataclass

from serving.denoiser import Denoised
from serving.engine_statistics import StepStats


@dataclass(slots=True, eq=False)
class Step:
    """The step of one worker.

    Attributes:
        worker: whose lanes it advances.
        stats: what it has done so far.
        compute: the part that may run on another thread; None where there is no batch, because all
            that was to do was to end requests.
        alone: whether it uses the whole network, so that no other step can be under way.
        begun_seconds: when, by the engine's clock.
        denoised: what compute() gave.
        error: what it raised instead.
        batching: what has begun it, for the engine to know it again.
    """

    worker: int
    stats: StepStats
    compute: Callable[[], Denoised] | None = None
    alone: bool = False
    begun_seconds: float = 0.0
    denoised: Denoised | None = None
    error: Exception | None = None
    batching: object = None

    def run(self) -> None:
        """Computes. On any thread, once, between begin() and finish() of the engine."""
        if self.compute is None:
            return
        try:
            self.denoised = self.compute()
        except Exception as error:  # noqa: BLE001  (finish() logs it)
            self.error = error
