"""What the metrics cost: engine steps at saturation with everything counted, against without.

    python -m benchmarks.metrics_overhead

Each finished image is counted as a request of its own, which is the most that there can be, and
everything is published every five seconds, as for Prometheus. Two figures: the share of the time
that goes into the metrics, measured around every single step; and the throughput with them against
that without, in short turns one after the other, which also shows what the first one does not see.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.engine_overhead import Saturated
from benchmarks.pace import times_per_second
from serving.bundle import load_bundle
from serving.engine import StepStats
from serving.engine_model import EngineModel, Network
from serving.lane_count import measure_lane_count
from serving.metrics import Metrics
from serving.network import embedding_table, make_network, resolve_provider

MODEL = "model"
METHOD = "Generate"


class Counting:
    """Counts steps and requests as a server does.

    Attributes:
        seconds: that this has taken.
    """

    def __init__(self, scrape_seconds: float) -> None:
        self.metrics = Metrics()
        self.seconds = 0.0
        self._scrape_seconds = scrape_seconds
        self._scraped_seconds = time.perf_counter()
        self.metrics.model_loaded(
            MODEL,
            version="1",
            provider="cpu",
            runtime_version="1",
            label_names=[str(label) for label in range(10)],
            bit_equal=True,
        )
        self._calls = self.metrics.calls("unary", "service", METHOD)

    def count(self, stats: StepStats) -> None:
        """Counts a step and the requests that it finished; publishes when it is time to."""
        begin = time.perf_counter()
        self.metrics.engine_stepped(MODEL, stats)
        for _ in range(stats.images_finished):
            self._count_request()
        if begin - self._scraped_seconds > self._scrape_seconds:
            self._scraped_seconds = begin
            self.metrics.exposition()
        self.seconds += time.perf_counter() - begin

    def _count_request(self) -> None:
        self._calls.started()
        self._calls.received()
        self.metrics.request_started(METHOD)
        self.metrics.request_computed(MODEL, 0.01, 0.1)
        self.metrics.first_image_sent(METHOD, MODEL, 0.1)
        self.metrics.images_delivered(MODEL, "7", 1)
        self.metrics.request_finished(METHOD, "OK", 0.1)
        self._calls.handled("OK", 0.1)
        self._calls.sent()


@dataclass(frozen=True, slots=True)
class Cost:
    """What was measured.

    Attributes:
        lanes: images in each batch.
        shares: of the time that goes into the metrics, one per turn.
        ratios: engine steps per second with metrics / without, one per turn.
    """

    lanes: int
    shares: tuple[float, ...]
    ratios: tuple[float, ...]

    def summary(self) -> str:
        """Returns one line."""
        share, ratio = statistics.median(self.shares), statistics.median(self.ratios)
        return (
            f"{self.lanes} lanes: metrics take {share:.2%} of the time (at most"
            f" {max(self.shares):.2%} in a turn); throughput with them {ratio:.3f} of that without"
            f" ({min(self.ratios):.3f} to {max(self.ratios):.3f} in {len(self.ratios)} turns)"
        )


def measure(
    model: EngineModel,
    network: Network,
    lanes: int,
    *,
    turns: int = 20,
    turn_seconds: float = 1.0,
    scrape_seconds: float = 5.0,
) -> Cost:
    """Lets steps with and without metrics take turns.

    Args:
        model: what the network draws.
        network: the noise predictor.
        lanes: images in each batch.
        turns: of each.
        turn_seconds: of each turn.
        scrape_seconds: how often everything is published.
    """
    saturated, counting = Saturated(model, network, lanes, "ddpm"), Counting(scrape_seconds)

    def counted() -> None:
        for stats in saturated.step():
            counting.count(stats)

    times_per_second(saturated.step, 0.5 * turn_seconds)
    shares, ratios = [], []
    for _ in range(turns):
        without = times_per_second(saturated.step, turn_seconds)
        before, begin = counting.seconds, time.perf_counter()
        with_metrics = times_per_second(counted, turn_seconds)
        shares.append((counting.seconds - before) / (time.perf_counter() - begin))
        ratios.append(with_metrics / without)
    return Cost(lanes, tuple(shares), tuple(ratios))


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default="models/mnist", show_default=True)
@click.option("--lanes", type=click.IntRange(1), help="By default what a server would choose.")
@click.option("--provider", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--turns", type=click.IntRange(1), default=20, show_default=True)
@click.option("--turn-seconds", type=float, default=1.0, show_default=True)
def main(*, model: Path, lanes: int | None, provider: str, turns: int, turn_seconds: float) -> None:
    """Prints what the metrics cost."""
    bundle = load_bundle(model)
    drawn = EngineModel.from_manifest(bundle.manifest, embedding_table(bundle))
    network = make_network(bundle, resolve_provider(provider))
    if lanes is None:
        lanes = measure_lane_count(drawn, network).max_lanes
    measured = measure(drawn, network, lanes, turns=turns, turn_seconds=turn_seconds)
    print(f"{bundle.manifest.name} on {network.provider}, {measured.summary()}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.metrics_overhead")
