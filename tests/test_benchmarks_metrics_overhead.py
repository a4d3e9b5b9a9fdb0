"""The benchmark of the metrics: that it counts what a server counts, and sees what it costs."""

import statistics
import time

import pytest

from benchmarks.metrics_overhead import METHOD, MODEL, Cost, Counting, measure
from serving.bundle import load_bundle
from serving.engine import StepStats
from serving.engine_model import EngineModel
from serving.lane_count import measure_lane_count
from serving.network import embedding_table, make_network
from tests.fakes import FakeNetwork, fake_model
from tests.fault_figures import Record
from tests.server_process import MNIST


def test_steps_and_the_requests_that_they_finish_are_counted() -> None:
    counting = Counting(scrape_seconds=1000)
    counting.count(StepStats(rows=6, rows_useful=6, rows_finished=20, images_finished=2))
    value = counting.metrics.value
    assert value("diffusion_engine_step_rows_sum", model=MODEL) == 6
    assert value("diffusion_requests_finished_total", method=METHOD, code="OK") == 2
    assert value("diffusion_rows_total", model=MODEL, kind="useful") == 20
    assert counting.seconds > 0


def test_turns_alternate_and_costly_metrics_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    network = FakeNetwork(on_call=lambda _: time.sleep(0.002))
    cheap = measure(fake_model(), network, 6, turns=2, turn_seconds=0.1)
    assert len(cheap.shares) == len(cheap.ratios) == 2
    monkeypatch.setattr(Counting, "_count_request", lambda _: time.sleep(0.002))
    dear = measure(fake_model(), network, 6, turns=2, turn_seconds=0.1)
    assert min(dear.shares) > max(cheap.shares)


def test_the_figures_are_medians() -> None:
    summary = Cost(8, (0.001, 0.002, 0.009), (0.97, 0.998, 1.01)).summary()
    assert summary == (
        "8 lanes: metrics take 0.20% of the time (at most 0.90% in a turn); throughput with them"
        " 0.998 of that without (0.970 to 1.010 in 3 turns)"
    )


@pytest.mark.fault
def test_the_metrics_cost_less_than_a_hundredth_of_the_throughput(figure: Record) -> None:
    bundle = load_bundle(MNIST)
    network = make_network(bundle, "cpu")
    model = EngineModel.from_manifest(bundle.manifest, embedding_table(bundle))
    lanes = measure_lane_count(model, network).max_lanes
    share = statistics.median(measure(model, network, lanes, turns=10).shares)
    figure("share of the time that goes into metrics", share, "< 0.01")
    assert share < 0.01
