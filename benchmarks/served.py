"""An engine on its threads, as in a server, for as long as it is measured."""

import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.engine import Engine
from serving.engine_model import EngineModel, Network
from serving.engine_statistics import StepStats
from serving.engine_threads import EngineThreads
from serving.request import GenerateSpec, NullSink, Outcome, Pixels

_BEGINNING_SECONDS = 0.05
_PATIENCE_SECONDS = 60.0
QUEUED_IMAGES = 1 << 14
"""Images that may be asked for at once."""

_AHEAD = 3  # requests that wait while others are drawn


class Served:
    """Draws, and counts the rows of its steps. One measurement at a time; then it does nothing."""

    def __init__(
        self,
        model: EngineModel,
        network: Network,
        max_lanes: int,
        max_queued_images: int | None = None,
        *,
        warm: bool = True,
    ) -> None:
        """Starts the threads.

        Args:
            model: what the network draws.
            network: of the engine.
            max_lanes: see Engine.
            max_queued_images: None for what is enough for rows_per_second(): every step looks at
                the room that there is for requests.
            warm: whether to wait until they are; else the first steps of each size take longer.
        """
        self._lanes = max_lanes
        self._steps: list[tuple[float, int]] = []
        engine = (Engine if warm else _ColdEngine)(
            model, network, max_lanes=max_lanes,
            max_queued_images=max_queued_images or (1 + _AHEAD) * max_lanes,
        )  # fmt: skip
        self.workers = engine.workers
        self._threads = EngineThreads({"": engine}, on_step=self._note)
        self._threads.start()

    def draw(self, specs: Sequence[GenerateSpec]) -> tuple[npt.NDArray[np.uint8], float]:
        """Every image of some requests, in order: uint8 [N, C, H, W], and the seconds it took.

        Raises:
            RuntimeError: if a request does not end well.
        """
        albums = [Album() for _ in specs]
        begin = time.perf_counter()
        for spec, album in zip(specs, albums, strict=True):
            self._threads.submit("", spec, album)
        for spec, album in zip(specs, albums, strict=True):
            album.wait()
            if album.outcome is not Outcome.FINISHED:
                raise RuntimeError(f"the request for label {spec.label} ended as {album.outcome}")
        seconds = time.perf_counter() - begin
        images = [album.images[i] for album in albums for i in sorted(album.images)]
        return np.stack(images), seconds

    def rows_per_second(self, num_steps: int, seconds: float) -> float:
        """Of steps with every lane in use and a row for each, over so many seconds.

        Raises:
            RuntimeError: a lane was free.
        """
        self._steps.clear()
        begin = time.perf_counter() + _BEGINNING_SECONDS
        steps = self.saturate(num_steps, _BEGINNING_SECONDS + seconds)
        within = [rows for end, rows in steps if begin <= end < begin + seconds]
        if not within:
            raise RuntimeError(f"no step in {seconds:g} s")
        if min(within) < self._lanes // self.workers:
            raise RuntimeError(f"a step of {min(within)} rows: lanes were free")
        return sum(within) / seconds

    def saturate(self, num_steps: int, seconds: float = 0.0) -> list[tuple[float, int]]:
        """Asks for more images than there are lanes for so long, and draws what was asked for.

        Returns:
            when each step within that time ended, and its rows.
        """
        spec = GenerateSpec(
            label=0, count=self._lanes, first_index=0, seed=0, sampler="ddpm",
            num_steps=num_steps, guidance_scale=1.0,
        )  # fmt: skip
        going = threading.Event()
        going.set()
        asking = [_Again(self._threads, spec, going) for _ in range(1 + _AHEAD)]
        for again in asking:
            again.submit()
        time.sleep(seconds)
        steps = self._steps.copy()
        going.clear()
        for again in asking:
            again.wait()
        return steps

    def close(self) -> None:
        """Stops the threads."""
        self._threads.stop()

    def _note(self, _model: str, stats: StepStats) -> None:
        self._steps.append((time.perf_counter(), stats.rows_useful))


class _ColdEngine(Engine):
    """Records a CUDA graph when it needs it, in place of all before."""

    def warm_up(self) -> None:
        """See Engine."""


class Album(NullSink):
    """A sink that keeps the images."""

    def __init__(self) -> None:
        self.images: dict[int, Pixels] = {}
        self.outcome: Outcome | None = None
        self._done = threading.Event()

    def image(self, index: int, pixels: Pixels) -> None:
        """See Sink."""
        self.images[index] = pixels

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        """See Sink."""
        self.outcome = outcome
        self._done.set()

    def wait(self) -> None:
        """Waits for the end of the request.

        Raises:
            RuntimeError: if it does not come.
        """
        if not self._done.wait(_PATIENCE_SECONDS):
            raise RuntimeError(f"no end of a request within {_PATIENCE_SECONDS:g} s")


class _Again(NullSink):
    """Asks for the same again whenever it has it, for as long as that goes on."""

    def __init__(self, threads: EngineThreads, spec: GenerateSpec, going: threading.Event) -> None:
        self._threads, self._spec, self._going = threads, spec, going
        self._ended = threading.Event()

    def submit(self) -> None:
        self._threads.submit("", self._spec, self)

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        if outcome is Outcome.FINISHED and self._going.is_set():
            self.submit()
        else:
            self._ended.set()

    def wait(self) -> None:
        if not self._ended.wait(_PATIENCE_SECONDS):
            raise RuntimeError(f"no end of a request within {_PATIENCE_SECONDS:g} s")
