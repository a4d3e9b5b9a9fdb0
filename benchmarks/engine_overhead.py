"""What the engine costs: its steps at saturation against bare network calls of the same size.

    python -m benchmarks.engine_overhead

Both run in one process on one session, in short turns one after the other, so that whatever else
the machine does meets both alike. The figure is the median of (engine steps per second) / (bare
calls per second) over the turns; 1 would be an engine that costs nothing.
"""

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks import results
from benchmarks.pace import times_per_second
from benchmarks.results import Spread
from diffusion.samplers import SAMPLERS
from serving.bundle import load_bundle
from serving.denoiser import EngineModel, Network
from serving.device import PROVIDER_CHOICES
from serving.engine import Engine, StepStats
from serving.lane_count import measure_lane_count
from serving.network import embedding_table, make_network, resolve_provider
from serving.request import GenerateSpec, NullSink


@dataclass(frozen=True, slots=True)
class Overhead:
    """What was measured.

    Attributes:
        lanes: images in each batch.
        bare_per_second: network calls per second, median of the turns.
        engine_per_second: engine steps per second, median of the turns.
        ratios: engine / bare, one per turn.
    """

    lanes: int
    bare_per_second: float
    engine_per_second: float
    ratios: tuple[float, ...]

    def summary(self) -> str:
        """Returns one line."""
        median, low, high = statistics.median(self.ratios), min(self.ratios), max(self.ratios)
        return (
            f"{self.lanes} lanes: {self.engine_per_second:.1f} engine steps per second,"
            f" {self.bare_per_second:.1f} bare calls per second, ratio {median:.3f}"
            f" ({low:.3f} to {high:.3f} in {len(self.ratios)} turns)"
        )


class Saturated:
    """An engine that always has more to do than it has lanes."""

    def __init__(self, model: EngineModel, network: Network, lanes: int, sampler: str) -> None:
        self._engine = Engine(model, network, max_lanes=lanes, max_queued_images=8 * lanes)
        # Of a usual length, so that joining and handing over have their usual share.
        num_steps = min(10, model.schedule.num_train_timesteps)
        # Guidance 1: each lane is one row, so that every batch has the size of the bare calls.
        self._spec = GenerateSpec(
            label=0, count=lanes, first_index=0, seed=0, sampler=sampler, num_steps=num_steps,
            guidance_scale=1.0,
        )  # fmt: skip
        self._lanes = lanes
        self._images_waiting = 0
        # A part of a request ahead, so that lanes do not all begin and end in the same step.
        self._engine.submit(dataclasses.replace(self._spec, count=-(-lanes // 2)), NullSink())
        for _ in range(num_steps // 2):
            self._engine.step()

    def step(self) -> StepStats:
        """One engine step with every lane in use."""
        while self._images_waiting < 2 * self._lanes:
            self._engine.submit(self._spec, NullSink())
            self._images_waiting += self._lanes
        stats = self._engine.step()
        assert stats is not None
        assert stats.rows_useful == self._lanes
        self._images_waiting -= stats.images_started
        return stats


def measure(
    model: EngineModel,
    network: Network,
    lanes: int,
    *,
    sampler: str = "ddpm",
    turns: int = 15,
    turn_seconds: float = 1.0,
) -> Overhead:
    """Lets bare calls and engine steps take turns.

    Args:
        model: what the network draws.
        network: the noise predictor.
        lanes: images in each batch.
        sampler: of the images; ddpm draws noise at every step.
        turns: of each.
        turn_seconds: of each turn.
    """
    saturated = Saturated(model, network, lanes, sampler)
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((lanes, *model.image_shape), dtype=np.float32)
    emb = np.ascontiguousarray(model.embedding_table[:lanes, 0])

    def bare() -> None:
        network(x_t, emb)

    for warm_up in (bare, saturated.step):
        times_per_second(warm_up, 0.5 * turn_seconds)
    calls, steps = [], []
    for _ in range(turns):
        calls.append(times_per_second(bare, turn_seconds))
        steps.append(times_per_second(saturated.step, turn_seconds))
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
    """Measures engine steps per second against bare network calls per second."""
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
        "bare_per_second": measured.bare_per_second,
        "engine_per_second": measured.engine_per_second,
        "ratio": Spread.of(measured.ratios),
    }
    results.save("engine", data, before, quick=quick, output=output)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.engine_overhead")
