"""How many lanes suit a network: the smallest batch that is nearly as fast per row as any."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.denoiser import EngineModel, Network
from serving.engine import Engine
from serving.request import GenerateSpec, NullSink

CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Lanes that are tried, in this order."""

GOOD_ENOUGH = 0.95
"""Of the best images per second: the smallest batch that reaches this is chosen."""

_STEPS = 4  # timed at each size; the fastest counts, as others on the machine only slow down
_BUDGET_SECONDS = 1.5
_NO_BETTER = 2  # sizes in a row without a new best that end the measurement


@dataclass(frozen=True, slots=True)
class LaneCount:
    """What was measured.

    Attributes:
        max_lanes: that were chosen.
        step_seconds: of the fastest engine step by lanes, for the sizes that were tried.
        seconds: that it took.
    """

    max_lanes: int
    step_seconds: dict[int, float]
    seconds: float

    def summary(self) -> str:
        """One line for the log."""
        tried = ", ".join(
            f"{lanes}: {lanes / seconds:.0f}" for lanes, seconds in self.step_seconds.items()
        )
        return f"rows per second by lanes, measured in {self.seconds:.2f} s: {tried}"


def measure_lane_count(
    model: EngineModel,
    network: Network,
    *,
    candidates: tuple[int, ...] = CANDIDATES,
    budget_seconds: float = _BUDGET_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> LaneCount:
    """Times whole engine steps at several sizes and chooses one.

    It takes about `budget_seconds` at most: no size is begun after that. Larger sizes are not
    tried once they have stopped being better.

    Args:
        model: what the network draws.
        network: the noise predictor.
        candidates: lanes to try, ascending.
        budget_seconds: above 0.
        clock: seconds, monotonic.

    Raises:
        ValueError: if there are no candidates.
        RuntimeError: if the network raises.
    """
    if not candidates:
        raise ValueError("candidates must not be empty")
    begin = clock()
    step_seconds: dict[int, float] = {}
    best, no_better = 0.0, 0
    for lanes in candidates:
        step_seconds[lanes] = _step_seconds(model, network, lanes, clock)
        rate = lanes / step_seconds[lanes]
        no_better = 0 if rate > best else no_better + 1
        best = max(best, rate)
        if no_better == _NO_BETTER or clock() - begin > budget_seconds:
            break
    chosen = next(
        lanes for lanes, seconds in step_seconds.items() if lanes / seconds >= GOOD_ENOUGH * best
    )
    return LaneCount(chosen, step_seconds, clock() - begin)


def _step_seconds(
    model: EngineModel, network: Network, lanes: int, clock: Callable[[], float]
) -> float:
    """Of the fastest step of an engine with so many lanes, all in use."""
    engine = Engine(model, network, max_lanes=lanes, max_queued_images=lanes)
    num_steps = min(_STEPS + 2, model.schedule.num_train_timesteps)
    spec = GenerateSpec(
        label=0, count=lanes, first_index=0, seed=0, sampler="ddpm", num_steps=num_steps,
        guidance_scale=1.0,
    )  # fmt: skip
    fastest = float("inf")
    engine.submit(spec, NullSink())
    engine.step()  # allocates, and draws the first noise
    for _ in range(_STEPS):
        if not engine.has_work:
            engine.submit(spec, NullSink())
        begin = clock()
        stats = engine.step()
        if stats is None or stats.network_failures:
            raise RuntimeError(f"the network failed for a batch of {lanes} rows")
        fastest = min(fastest, clock() - begin)
    return max(fastest, 1e-9)
