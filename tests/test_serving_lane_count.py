"""How many lanes are chosen, on a network whose cost is known."""

import pytest

from serving.lane_count import CANDIDATES, LaneCount, measure_lane_count
from tests.fakes import FakeClock, FakeNetwork, fake_model

MODEL = fake_model(num_train_timesteps=3, image_shape=(1, 1, 4))


def measured(
    seconds_per_row: float, fixed_seconds: float = 0.0, *, budget_seconds: float = 1e6
) -> LaneCount:
    clock = FakeClock()
    network = FakeNetwork(clock, seconds_per_row, fixed_seconds=fixed_seconds)
    return measure_lane_count(MODEL, network, budget_seconds=budget_seconds, clock=clock)


@pytest.mark.parametrize(
    ("fixed_seconds", "lanes"), [(0.0, 1), (0.1, 2), (0.25, 8), (1.0, 32), (3.0, 64), (1000.0, 256)]
)
def test_the_smallest_batch_with_95_percent_of_the_best_throughput_is_chosen(
    fixed_seconds: float, lanes: int
) -> None:
    result = measured(1.0, fixed_seconds)
    rates = {size: size / seconds for size, seconds in result.step_seconds.items()}
    best = max(rates.values())
    assert result.max_lanes == min(size for size in rates if rates[size] >= 0.95 * best) == lanes
    for size, seconds in result.step_seconds.items():
        assert seconds == pytest.approx(fixed_seconds + size)


def test_it_ends_when_larger_batches_are_no_better_or_its_time_is_up() -> None:
    assert list(measured(1.0).step_seconds) == [1, 2, 4]  # linear: nothing to be gained
    assert list(measured(0.001, 1000.0).step_seconds) == list(CANDIDATES)
    hurried = measured(0.001, 1.0, budget_seconds=12.0)
    assert list(hurried.step_seconds) == [1, 2, 4]  # five steps of a second at each
    assert hurried.max_lanes == 4
    assert hurried.seconds == pytest.approx(15.0, rel=0.01)


def test_other_work_on_the_machine_does_not_change_what_is_chosen() -> None:
    clock = FakeClock()
    network = FakeNetwork(clock, 1.0, fixed_seconds=1.0)

    def delay(call: int) -> None:
        clock.now += 50.0 if call % 3 == 0 else 0.0

    network.on_call = delay
    assert measure_lane_count(MODEL, network, budget_seconds=1e6, clock=clock).max_lanes == 32


def test_what_was_measured_fits_into_one_line_of_the_log() -> None:
    line = LaneCount(2, {1: 0.5, 2: 0.5}, 0.25).summary()
    assert line == "rows per second by lanes, measured in 0.25 s: 1: 2, 2: 4"


def test_a_network_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="failed for a batch of 1 rows"):
        measure_lane_count(MODEL, FakeNetwork(raise_on=set(range(99))))
    with pytest.raises(ValueError, match="candidates"):
        measure_lane_count(MODEL, FakeNetwork(), candidates=())
