"""Engines driven by hand, with all their workers: for measurements, and for whom nobody waits."""

from concurrent.futures import ThreadPoolExecutor

from serving.engine import Engine
from serving.engine_statistics import StepStats


class Rounds:
    """Has every worker of an engine make a step, side by side, and waits for all of them."""

    def __init__(self, workers: int) -> None:
        """For engines of up to so many workers."""
        # A thread for each worker: on CUDA, threads record their graphs.
        self._threads = [ThreadPoolExecutor(1) for _ in range(workers)] if workers > 1 else []

    def step(self, engine: Engine) -> list[StepStats]:
        """One round; what each step did. Empty if there was nothing to do."""
        begun = []
        while (step := engine.begin()) is not None:
            begun.append(step)
        if self._threads:
            for running in [self._threads[step.worker].submit(step.run) for step in begun]:
                running.result()
        else:
            for step in begun:
                step.run()
        return [engine.finish(step) for step in begun]

    def close(self) -> None:
        """Lets go of the threads."""
        for thread in self._threads:
            thread.shutdown()
