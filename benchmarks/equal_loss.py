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
class EqualLoss:
    """When a loop was as good as another one at its end.

    Attributes:
        of_other: the first of the other's points with its lowest error.
        of_loop: the first of the loop's points with no larger error; None if there is none.
    """

    of_other: Point
    of_loop: Point | None

    @property
    def times_as_fast(self) -> float | None:
        """The other's seconds by the loop's; None if it never got there."""
        return None if self.of_loop is None else self.of_other.seconds / self.of_loop.seconds


def courses(
    loops: dict[str, TrainingLoop],
    error: Callable[[dict[str, Tensor]], float],
    train_steps: int,
    every: int,
) -> dict[str, list[Point]]:
    """Lets loops train in turns, and measures the error of each after every turn.

    Args:
        loops: by name.
        error: of weights; the time it takes does not count.
        train_steps: of each loop in all.
        every: train steps of a turn.
    """
    found: dict[str, list[Point]] = {name: [] for name in loops}
    seconds = dict.fromkeys(loops, 0.0)
    for done in range(every, train_steps + 1, every):
        for name, loop in loops.items():
            begin = time.perf_counter()
            loop.run(every)
            seconds[name] += time.perf_counter() - begin
            found[name].append(Point(done, seconds[name], error(loop.weights())))
    return found


def equal_loss(loop: list[Point], other: list[Point]) -> EqualLoss:
    """Compares two courses. The lowest error, so that no bad moment of the other is met instead."""
    best = min(other, key=lambda point: point.error)
    reached = next((point for point in loop if point.error <= best.error), None)
    return EqualLoss(best, reached)
