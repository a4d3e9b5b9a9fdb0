"""What the engine costs: its steps at saturation against bare network calls of the same size.

    python -m benchmarks.engine_overhead

Both run in one process on one network, in short turns one after the other, so that whatever else
the machine does meets both alike. The figure is the median over the turns of (rows per second of
the engine) / (rows per second of bare calls); 1 would be an engine that costs nothing.

The bare calls are those of a loop that knows nothing better: a batch of as many rows as the engine
has lanes, on all threads, again and again. The engine has its workers make steps of their own.
"""

import contextlib
import dataclasses
import functools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks import results
from benchmarks.pace import times_per_second
from benchmarks.results import Spread
from diffusion.samplers import SAMPLERS
from serving.bundle import load_bundle
from serving.device import PROVIDER_CHOICES
from serving.engine import Engine, StepStats
from serving.engine_model import EngineModel, Network
from serving.engine_threads import EngineThreads, EngineUnavailable
from serving.lane_count import measure_lane_count
from serving.network import embedding_table, make_network, resolve_provider
from serving.request import GenerateSpec, NullSink, Outcome
from serving.rounds import Rounds

_BEGINNING_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Overhead:
    """What was measured.

    Attributes:
        lanes: images in each batch.
        bare_rows_per_second: network rows per second of bare calls, median of the turns.
        engine_rows_per_second: network rows per second of the engine, median of the turns.
        ratios: engine / bare, one per turn.
    """

    lanes: int
    bare_rows_per_second: float
    engine_rows_per_second: float
    ratios: tuple[float, ...]

    def summary(self) -> str:
        """Returns one line."""
        median, low, high = statistics.median(self.ratios), min(self.ratios), max(self.ratios)
        return (
            f"{self.lanes} lanes: {self.engine_rows_per_second:.0f} rows per second of the engine,"
            f" {self.bare_rows_per_second:.0f} of bare calls, ratio {median:.3f}"
            f" ({low:.3f} to {high:.3f} in {len(self.ratios)} turns)"
        )


class Saturated:
    """An engine that always has more to do than it has lanes, driven by hand."""

    def __init__(self, model: EngineModel, network: Network, lanes: int, sampler: str) -> None:
        self._engine = Engine(model, network, max_lanes=lanes, max_queued_images=8 * lanes)
        self._rounds = Rounds(self._engine.workers)
        self._spec = _spec(model, lanes, sampler)
        self._lanes = lanes
        self._images_waiting = 0
        # A part of a request ahead, so that lanes do not all begin and end in the same step.
        self._engine.submit(dataclasses.replace(self._spec, count=-(-lanes // 2)), NullSink())
        for _ in range(self._spec.num_steps // 2):
            self._rounds.step(self._engine)

    def step(self) -> list[StepStats]:
        """One engine step of every worker, with every lane in use."""
        while self._images_waiting < 2 * self._lanes:
            self._engine.submit(self._spec, NullSink())
            self._images_waiting += self._lanes
        steps = self._rounds.step(self._engine)
        assert sum(stats.rows_useful for stats in steps) == self._lanes
        self._images_waiting -= sum(stats.images_started for stats in steps)
        return steps


class SaturatedThreads:
    """An engine that always has more to do than it has lanes, on threads as in a server.

    For turns: it works in rows_per_second() only.
    """

    def __init__(self, model: EngineModel, network: Network, lanes: int, sampler: str) -> None:
        self._make = functools.partial(
            Engine, model, network, max_lanes=lanes, max_queued_images=8 * lanes
        )
        self._spec = _spec(model, lanes, sampler)
        self._workers = self._make().workers

    def rows_per_second(self, seconds: float) -> float:
        """Keeps all workers busy for so long, once they have begun.

        Raises:
            RuntimeError: a lane was free.
        """
        steps: list[tuple[float, int]] = []
        threads = EngineThreads(
            {"": self._make()},
            on_step=lambda _, stats: steps.append((time.perf_counter(), stats.rows_useful)),
        )
        # A part of a request ahead, so that lanes do not all begin and end in the same step.
        _Again(threads, dataclasses.replace(self._spec, count=-(-self._spec.count // 2))).submit()
        for _ in range(3):
            _Again(threads, self._spec).submit()
        threads.start()
        time.sleep(_BEGINNING_SECONDS + seconds)
        threads.stop()
        begin = steps[0][0] + _BEGINNING_SECONDS
        within = [rows for end, rows in steps if begin <= end < begin + seconds]
        if min(within) < self._spec.count // self._workers:
            raise RuntimeError(f"a step of {min(within)} rows: lanes were free")
        return sum(within) / seconds


class _Again(NullSink):
    """Asks for the same again when it has it."""

    def __init__(self, threads: EngineThreads, spec: GenerateSpec) -> None:
        self._threads = threads
        self._spec = spec

    def submit(self) -> None:
        self._threads.submit("", self._spec, self)

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        if outcome is Outcome.FINISHED:
            with contextlib.suppress(EngineUnavailable):  # the turn is over
                self.submit()


def _spec(model: EngineModel, lanes: int, sampler: str) -> GenerateSpec:
    """As many images as there are lanes, of a usual length, and one row for each of them.

    So joining and handing over have their usual share, and all batches together are a bare call's.
    """
    num_steps = min(10, model.schedule.num_train_timesteps)
    return GenerateSpec(
        label=0, count=lanes, first_index=0, seed=0, sampler=sampler, num_steps=num_steps,
        guidance_scale=1.0,
    )  # fmt: skip


def measure(
    model: EngineModel,
    network: Network,
    lanes: int,
    *,
    sampler: str = "ddpm",
    turns: int = 15,
    turn_seconds: float = 1.0,
) -> Overhead:
    """Lets bare calls and the engine take turns.

    Args:
        model: what the network draws.
        network: the noise predictor.
        lanes: images in each batch.
        sampler: of the images; ddpm draws noise at every step.
        turns: of each.
        turn_seconds: of each turn.
    """
    saturated = SaturatedThreads(model, network, lanes, sampler)
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((lanes, *model.image_shape), dtype=np.float32)
    emb = np.ascontiguousarray(model.embedding_table[:lanes, 0])

    def bare() -> None:
        network(x_t, emb)

    times_per_second(bare, 0.5 * turn_seconds)
    saturated.rows_per_second(0.5 * turn_seconds)
    calls, steps = [], []
    for _ in range(turns):
        calls.append(lanes * times_per_second(bare, turn_seconds))
        steps.append(saturated.rows_per_second(turn_seconds))
    ratios = tuple(step / call for step, call in zip(steps, calls, strict=True))
    return Overhead(lanes, statistics.median(calls), statistics.median(steps), ratios)


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default="models/mnist", show_default=True)
@click.option("--lanes", type=click.IntRange(1), help="By default what a server would choose.")
@click.option("--sampler", type=click.Choice(list(SAMPLERS)), default="ddpm", show_default=True)
@click.option("--provider", type=click.Choice(PROVIDER_CHOICES), default="auto")
@click.option("--num-threads", type=click.IntRange(1))
@click.option("--turns", type=click.IntRange(1), default=15, show_default=True)
@click.option("--turn-seconds", type=float, default=1.0, show_default=True)
@click.option("--quick", is_flag=True, help="A second, to see that it works.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path))
def main(
    *,
    model: Path,
    lanes: int | None,
    sampler: str,
    provider: str,
    num_threads: int | None,
    turns: int,
    turn_seconds: float,
    quick: bool,
    output: Path | None,
) -> None:
    """Measures rows per second of the engine against those of bare network calls."""
    before = results.machine()
    if quick:
        turns, turn_seconds = 1, 0.2
    bundle = load_bundle(model)
    network = make_network(bundle, resolve_provider(provider), num_threads)
    drawn = EngineModel.from_manifest(bundle.manifest, embedding_table(bundle))
    if lanes is None:
        lanes = measure_lane_count(drawn, network).max_lanes
    measured = measure(
        drawn, network, lanes, sampler=sampler, turns=turns, turn_seconds=turn_seconds
    )
    print(f"{bundle.manifest.name} on {network.provider}, {sampler}, {measured.summary()}")
    data = {
        "lanes": measured.lanes,
        "sampler": sampler,
        "provider": network.provider,
        "bare_rows_per_second": measured.bare_rows_per_second,
        "engine_rows_per_second": measured.engine_rows_per_second,
        "ratio": Spread.of(measured.ratios),
    }
    results.save("engine", data, before, quick=quick, output=output)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.engine_overhead")
