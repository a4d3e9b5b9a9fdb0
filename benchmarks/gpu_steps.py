"""Engine steps on a GPU against bare replays of their CUDA graphs."""

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.pace import times_per_second
from benchmarks.results import Spread
from benchmarks.served import Served
from serving.engine_model import EngineModel
from serving.step_networks import StepNetworks

_NUM_STEPS = 10  # of every image


def bucket_steps(
    model: EngineModel, network: StepNetworks, turns: int, turn_seconds: float
) -> list[dict[str, Any]]:
    """Engine steps with all lanes in use against bare replays, at every bucket, in turns.

    A replay is of one worker, again and again; "both" is all workers replaying side by side, which
    is more where one does not fill the device. The engine has as many rows for each worker.
    """
    found = []
    for lanes in network.lane_counts:
        served = Served(model, network, lanes, warm=False)
        rows = lanes // len(network.workers)
        replays = [partial(worker.replay, rows) for worker in network.workers]
        side_by_side = SideBySide(replays)
        bare: list[float] = []
        both: list[float] = []
        steps: list[float] = []
        served.saturate(_NUM_STEPS)  # records
        for _ in range(turns):
            measured = (
                times_per_second(replays[0], turn_seconds),
                side_by_side.times_per_second(turn_seconds),
                served.rows_per_second(_NUM_STEPS, turn_seconds) / rows,
            )
            for kept, rate in zip((bare, both, steps), measured, strict=True):
                kept.append(1 / rate)
        served.close()
        side_by_side.close()
        ratios = [step / replay for step, replay in zip(steps, bare, strict=True)]
        found.append(
            {
                "rows": rows,
                "replay_seconds": statistics.median(bare),
                "both_seconds": statistics.median(both),
                "step_seconds": statistics.median(steps),
                "ratio": asdict(Spread.of(ratios)),
            }
        )
    return found


class SideBySide:
    """Does several things at once, on a thread each: on CUDA, threads record their graphs."""

    def __init__(self, works: Sequence[Callable[[], object]]) -> None:
        self._threads = [(ThreadPoolExecutor(1), work) for work in works]
        for thread, work in self._threads:
            thread.submit(work).result()  # records, one after the other

    def times_per_second(self, seconds: float) -> float:
        """How often a second all of them together are done."""
        running = [thread.submit(times_per_second, work, seconds) for thread, work in self._threads]
        return sum(rate.result() for rate in running)

    def close(self) -> None:
        """Lets go of the threads."""
        for thread, _ in self._threads:
            thread.shutdown()
