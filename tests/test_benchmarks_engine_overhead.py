"""The benchmark of the engine's overhead: that it measures what it says."""

import time
from typing import Any

import pytest

from benchmarks.engine_overhead import Overhead, measure
from tests.fakes import FakeNetwork, fake_model


def test_both_sides_run_batches_of_the_same_size_for_their_turns() -> None:
    network = FakeNetwork(on_call=lambda _: time.sleep(0.001))
    measured = measure(fake_model(), network, 6, turns=3, turn_seconds=0.05)
    assert {len(batch) for batch in network.batches[10:]} == {6}
    assert len(measured.ratios) == 3
    assert all(0.0 < ratio for ratio in measured.ratios)
    assert measured.bare_rows_per_second <= 6 * 1000


def test_the_figure_is_the_median_of_the_turns() -> None:
    summary = Overhead(8, 100.0, 90.0, (0.5, 0.9, 0.95)).summary()
    assert summary == (
        "8 lanes: 90 rows per second of the engine, 100 of bare calls, ratio 0.900"
        " (0.500 to 0.950 in 3 turns)"
    )


def test_an_engine_that_does_not_fill_its_lanes_is_noticed(monkeypatch: Any) -> None:
    monkeypatch.setattr("serving.batching.Batching._share_of", lambda *_, **__: (False, 4))
    with pytest.raises(RuntimeError, match="a step of 4 rows"):
        measure(fake_model(), FakeNetwork(), 6, turns=1, turn_seconds=0.01)
