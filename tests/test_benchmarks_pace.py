"""benchmarks.pace: what is counted is what was done in the time that it took."""

import time

import pytest

from benchmarks.pace import times_per_second
from tests.fakes import FakeClock


def test_the_pace_is_of_whole_pieces_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def work() -> None:
        clock.now += 0.3

    assert times_per_second(work, 1.0) == pytest.approx(4 / 1.2)  # the fourth had begun by then
