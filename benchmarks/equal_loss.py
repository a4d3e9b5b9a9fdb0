"""How long two training loops take to the same error: seconds, not train steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks.training_loops import TrainingLoop


@dataclass(frozen=True, slots=True)
class Point:
    """Where a loop stands: seconds of training so far, and the error of its weights."""

    train_steps: int
    seconds: float
    error: float


@dataclass(frozen=True, slots=True)
class Run:
    """A loop, and how long it is to train."""

    loop: TrainingLoop
    train_steps: int


@dataclass(frozen=True, slots=True)
class EqualLoss:
    """When one of several runs was as good as another loop at its best.

    Attributes:
        of_other: the first of the other's points with its lowest error.
        name: of the run that was there soonest; None if none was.
        of_run: the first of its points with no larger error.
    """

    of_other: Point
    name: str | None
    of_run: Point | None

    @property
    def times_as_fast(self) -> float | None:
        """The other's seconds by the run's; None if it never got there."""
        return None if self.of_run is None else self.of_other.seconds / self.of_run.seconds


def courses(
    runs: dict[str, Run], error: Callable[[dict[str, Tensor]], float], every: int
) -> dict[str, list[Point]]:
    """Lets loops train in turns, and measures the error of each after every turn.

    Args:
        runs: by name.
        error: of weights; the time it takes does not count.
        every: train steps of a turn; the last one of a run may have fewer.
    """
    found: dict[str, list[Point]] = {name: [] for name in runs}
    seconds, done = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0)
    while any(done[name] < run.train_steps for name, run in runs.items()):
        for name, run in runs.items():
            steps = min(every, run.train_steps - done[name])
            if not steps:
                continue
            begin = time.perf_counter()
            run.loop.run(steps)
            seconds[name] += time.perf_counter() - begin
            done[name] += steps
            found[name].append(Point(done[name], seconds[name], error(run.loop.weights())))
    return found


def equal_loss(runs: dict[str, list[Point]], other: list[Point]) -> EqualLoss:
    """Compares courses. The lowest error, so that no bad moment of the other is met instead."""
    best = min(other, key=lambda point: point.error)
    there = [
        (point, name)
        for name, course in runs.items()
        for point in course
        if point.error <= best.error
    ]
    soonest, name = min(there, key=lambda found: found[0].seconds, default=(None, None))
    return EqualLoss(best, name, soonest)
