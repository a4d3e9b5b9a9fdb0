"""How many lanes suit a network: the smallest batch that is nearly as fast per row as any.

And how many where so many requests wait that the length of a step is no matter.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.engine import Engine
from serving.engine_model import EngineModel, Network, workers_of
from serving.request import GenerateSpec, NullSink
from serving.rounds import Rounds
from serving.step_networks import DeviceNetwork

CANDIDATES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Lanes that are tried, in this order."""

FEWEST = 8
"""Lanes that are chosen at least: on a machine that is busy otherwise, a step that is short enough
to end before its thread has to pause looks quick, and a server would keep that for its life."""

GOOD_ENOUGH = 0.98
"""Of the best images per second: the smallest batch that reaches this is chosen. In a server every
step costs more than here, where nobody sends requests: 95 % here were 88 % there."""

TOGETHER = 0.9
"""Of the time in which one worker computes an image alone: all workers together have to be at least
so quick. Any of them that is held up holds up all, and in a server that happens more often."""

LONGEST_STEP_SECONDS = 0.03
"""A step that takes longer is too long a wait for whoever comes while it runs, and its memory is
kept: what larger batches would still gain is not worth these, unless --max-lanes says so."""

MANY_LANES = 24
"""Of each worker, at most, where many requests wait: what a step costs beside the network, the same
for few lanes and for many, is little then (benchmarks/LEVERS.md)."""

LONGEST_STEP_OF_MANY_SECONDS = 0.06
"""Also then deadlines and cancellations wait for the end of a step."""

_ROUNDS = 5
_BUDGET_SECONDS = 1.0
_NO_BETTER = 2  # sizes in a row without a new best that end the search


@dataclass(frozen=True, slots=True)
class LaneCount:
    """What was measured.

    Attributes:
        usual_lanes: that were chosen.
        max_lanes: for when many requests wait, no fewer.
        step_seconds: of an engine step of all workers side by side, by their lanes in all, the
            median, for the sizes that were tried.
        together: whether one image alone is sooner done by all workers together than by one.
        seconds: that it took.
    """

    usual_lanes: int
    max_lanes: int
    step_seconds: dict[int, float]
    together: bool
    seconds: float

    def summary(self) -> str:
        """One line for the log."""
        tried = ", ".join(
            f"{lanes}: {lanes / seconds:.0f}" for lanes, seconds in self.step_seconds.items()
        )
        one = "all workers" if self.together else "one worker"
        return (
            f"rows per second by lanes, measured in {self.seconds:.2f} s: {tried};"
            f" an image alone by {one}"
        )


def measure_lane_count(
    model: EngineModel,
    network: Network,
    *,
    candidates: tuple[int, ...] | None = None,
    together: bool | None = None,
    budget_seconds: float = _BUDGET_SECONDS,
    longest_step_seconds: float = LONGEST_STEP_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> LaneCount:
    """Times whole engine steps at several sizes and chooses one.

    One image is tried in both ways: by all workers together, and by one of them. Larger sizes are
    not tried once they have stopped being better or take too long. Then all are timed again in
    turns, so that a moment in which the machine is busy harms all of them alike. It takes about
    `budget_seconds` at most: after that, no step is begun but the first. On a device, first steps
    do not count: they record.

    Args:
        model: what the network draws.
        network: the noise predictor.
        candidates: lanes to try, ascending; None for CANDIDATES, or what the network has room for.
        together: whether all workers compute one image alone; None for what is sooner.
        budget_seconds: above 0.
        longest_step_seconds: above 0; a size whose step takes longer is not chosen, unless none of
            FEWEST lanes or more takes less.
        clock: seconds, monotonic.

    Raises:
        ValueError: if there are no candidates.
        RuntimeError: if the network raises.
    """
    # Of the memory of a device there is one: in turns, images would be moved at every step.
    in_turns = not isinstance(network, DeviceNetwork)
    if candidates is None:
        candidates = network.lane_counts if isinstance(network, DeviceNetwork) else CANDIDATES
    if not candidates:
        raise ValueError("candidates must not be empty")
    end = (begin := clock()) + budget_seconds
    workers = workers_of(network)
    rounds = Rounds(len(workers))
    fewest = min(FEWEST, candidates[-1])
    trials: list[_Trial] = []
    in_doubt = together is None and len(workers) > 1 and candidates[0] == 1
    by_one = [_Trial(model, workers[0], 1, rounds, clock)] if in_doubt else []
    best, no_better = 0.0, 0
    for lanes in candidates:
        trials.append(trial := _Trial(model, network, lanes, rounds, clock))
        if not in_turns:  # CUDA graphs are recorded first, whatever that takes
            end += trial.beginning_seconds
            for _ in range(_ROUNDS - 1):
                trial.step()
        if lanes >= fewest:
            no_better = 0 if trial.rate > best else no_better + 1
            best = max(best, trial.rate)
        too_long = lanes >= fewest and trial.step_seconds > longest_step_seconds
        if clock() > end or no_better == _NO_BETTER or too_long:
            break
    for trial in (trials + by_one) * (_ROUNDS - 1) if in_turns else []:
        if clock() > end:
            break
        trial.step()
    usual = _smallest_good(trials, fewest, longest_step_seconds)
    # The memory of a device is divided up at the start.
    most = _for_many(usual, candidates, len(workers)) if in_turns else usual.lanes
    rounds.close()
    step_seconds = {trial.lanes: trial.step_seconds for trial in trials}
    for trial in by_one:
        together = step_seconds[1] <= TOGETHER * trial.step_seconds
        step_seconds[1] = min(step_seconds[1], trial.step_seconds)
    return LaneCount(usual.lanes, most, step_seconds, together is not False, clock() - begin)


def _smallest_good(trials: list["_Trial"], fewest: int, longest_step_seconds: float) -> "_Trial":
    """The first that is GOOD_ENOUGH among those that are neither too few nor slow."""
    able = [trial for trial in trials if trial.lanes >= fewest] or trials[-1:]
    able = [trial for trial in able if trial.step_seconds <= longest_step_seconds] or able[:1]
    enough = GOOD_ENOUGH * max(trial.rate for trial in able)
    return next(trial for trial in able if trial.rate >= enough)


def _for_many(usual: "_Trial", candidates: tuple[int, ...], workers: int) -> int:
    """Lanes where many requests wait, if a step takes no longer per lane than with the usual."""
    most = min(MANY_LANES * workers, usual.rate * LONGEST_STEP_OF_MANY_SECONDS)
    return max([usual.lanes, *(lanes for lanes in candidates if lanes <= most)])


class _Trial:
    """An engine with all of its lanes in use.

    Attributes:
        lanes: that it has.
        beginning_seconds: of its first step, which is not like the others.
    """

    def __init__(
        self,
        model: EngineModel,
        network: Network,
        lanes: int,
        rounds: Rounds,
        clock: Callable[[], float],
    ) -> None:
        self.lanes = lanes
        self._clock = clock
        self._seconds: list[float] = []
        self._engine = Engine(model, network, max_lanes=lanes, max_queued_images=lanes)
        self._rounds = rounds
        self._spec = GenerateSpec(
            label=0, count=lanes, first_index=0, seed=0, sampler="ddpm",
            num_steps=min(_ROUNDS + 1, model.schedule.num_train_timesteps), guidance_scale=1.0,
        )  # fmt: skip
        self.step()  # allocates, and draws the first noise
        self.beginning_seconds = self._seconds.pop()
        self.step()

    @property
    def step_seconds(self) -> float:
        """What a step takes: the median of those that were timed."""
        return statistics.median(self._seconds)

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.lanes / self.step_seconds

    def step(self) -> None:
        """Makes and times a step of every worker, side by side."""
        if not self._engine.has_work:
            self._engine.submit(self._spec, NullSink())
        begin = self._clock()
        done = self._rounds.step(self._engine)
        seconds = self._clock() - begin
        if not done or any(stats.network_failures for stats in done):
            raise RuntimeError(f"the network failed for a batch of {self.lanes} rows")
        self._seconds.append(max(seconds, 1e-9))
