"""How many lanes are chosen, on a network whose cost is known."""

import random

import pytest

from serving.lane_count import CANDIDATES, FEWEST, LaneCount, measure_lane_count
from tests.fakes import FakeClock, FakeNetwork, fake_model

MODEL = fake_model(num_train_timesteps=3, image_shape=(1, 1, 4))


def measured(
    seconds_per_row: float,
    fixed_seconds: float = 0.0,
    *,
    budget_seconds: float = 1e6,
    longest_step_seconds: float = 1e6,
) -> LaneCount:
    clock = FakeClock()
    network = FakeNetwork(clock, seconds_per_row, fixed_seconds=fixed_seconds)
    return measure_lane_count(
        MODEL, network, budget_seconds=budget_seconds, longest_step_seconds=longest_step_seconds,
        clock=clock,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fixed_seconds", "lanes"),
    [(0.0, 8), (0.1, 8), (0.2, 12), (0.5, 24), (1.0, 48), (3.0, 96), (1000.0, 256)],
)
def test_the_smallest_batch_with_98_percent_of_the_best_throughput_is_chosen(
    fixed_seconds: float, lanes: int
) -> None:
    result = measured(1.0, fixed_seconds)
    rates = {size: size / seconds for size, seconds in result.step_seconds.items()}
    best = max(rates.values())
    assert rates[lanes] >= 0.98 * best
    assert all(rate < 0.98 * best for size, rate in rates.items() if FEWEST <= size < lanes)
    assert result.usual_lanes == lanes
    for size, seconds in result.step_seconds.items():
        assert seconds == pytest.approx(fixed_seconds + size)


def test_it_ends_when_larger_batches_are_no_better_or_its_time_is_up() -> None:
    assert list(measured(1.0).step_seconds) == [1, 2, 4, 8, 12, 16]  # linear: nothing to be gained
    assert list(measured(0.001, 1000.0).step_seconds) == list(CANDIDATES)
    hurried = measured(0.001, 1.0, budget_seconds=11.0)
    assert list(hurried.step_seconds) == [1, 2, 4, 8, 12, 16]  # two steps of a second at each
    assert hurried.usual_lanes == 16
    assert hurried.seconds == pytest.approx(12.0, rel=0.02)


def test_a_batch_whose_step_is_too_long_to_wait_for_is_not_chosen() -> None:
    # 24 and more lanes would be faster.
    chosen = measured(1.0, 4.0, longest_step_seconds=20.0)
    assert list(chosen.step_seconds) == [
        1,
        2,
        4,
        8,
        12,
        16,
        24,
    ]  # the first that is too long ends it
    assert chosen.usual_lanes == 16
    assert measured(1.0, 3.0, longest_step_seconds=0.5).usual_lanes == FEWEST


def test_there_are_more_lanes_for_many_requests_but_no_step_of_more_than_60_ms() -> None:
    for seconds_per_row, workers, usual, most in (
        (0.0005, 1, 8, 24),
        (0.0005, 2, 8, 48),
        (0.002, 1, 8, 24),
        (0.0025, 1, 8, 24),
        (0.0026, 1, 8, 16),
        (0.01, 2, 8, 8),
    ):
        clock = FakeClock()
        network = FakeNetwork(clock, seconds_per_row, parts=workers)
        chosen = measure_lane_count(MODEL, network, longest_step_seconds=1e6, clock=clock)
        assert (chosen.usual_lanes, chosen.max_lanes) == (usual, most), seconds_per_row


def test_fewer_lanes_are_taken_only_where_no_more_may_be() -> None:
    clock = FakeClock()
    network = FakeNetwork(clock, 1.0)
    for most in (1, 4):
        candidates = tuple(range(1, most + 1))
        chosen = measure_lane_count(
            MODEL, network, candidates=candidates, longest_step_seconds=1e6, clock=clock
        )
        assert chosen.usual_lanes == min(FEWEST, max(chosen.step_seconds))


@pytest.mark.parametrize("seed", range(20))
def test_other_work_on_the_machine_does_not_change_what_is_chosen(seed: int) -> None:
    """Moments in which it is up to three times slower, each of a few steps."""
    clock, chance = FakeClock(), random.Random(seed)
    network = FakeNetwork(clock, 1.0, fixed_seconds=1.0)

    def change_pace(_: int) -> None:
        if chance.random() < 0.5:
            slower = chance.choice((1.0, 1.0, 1.0, 1.0, 1.1, 3.0))
            network.seconds_per_row = network.fixed_seconds = slower

    network.on_call = change_pace
    chosen = measure_lane_count(
        MODEL, network, budget_seconds=1e6, longest_step_seconds=1e6, clock=clock
    ).usual_lanes
    assert 8 <= chosen <= 64  # 24 on a quiet one; 8 give 92 % of what 24 do


@pytest.mark.parametrize(
    ("of_all", "together"), [(0.5, True), (0.89, True), (0.95, False), (2.0, False)]
)
def test_one_image_is_for_all_workers_only_where_they_are_clearly_sooner(
    of_all: float, *, together: bool
) -> None:
    clock = FakeClock()

    class Team(FakeNetwork):
        """One row takes all workers `of_all` of the second that it takes one of them."""

        @property
        def workers(self) -> tuple[FakeNetwork, ...]:
            return (FakeNetwork(clock, 1.0),) * 2

    network = Team(clock, of_all)
    chosen = measure_lane_count(
        MODEL, network, budget_seconds=1e6, longest_step_seconds=1e6, clock=clock
    )
    assert chosen.together is together
    assert chosen.step_seconds[1] == pytest.approx(min(of_all, 1.0))


def test_a_network_that_is_its_only_worker_does_everything_together() -> None:
    assert measured(1.0).together


def test_who_says_that_all_workers_compute_an_image_alone_is_believed() -> None:
    clock = FakeClock()
    network = FakeNetwork(clock, 1.0, parts=2)
    for together in (True, False):
        chosen = measure_lane_count(
            MODEL, network, together=together, longest_step_seconds=1e6, clock=clock
        )
        assert chosen.together is together


def test_what_was_measured_fits_into_one_line_of_the_log() -> None:
    line = LaneCount(2, 2, {1: 0.5, 2: 0.5}, together=False, seconds=0.25).summary()
    assert line == (
        "rows per second by lanes, measured in 0.25 s: 1: 2, 2: 4; an image alone by one worker"
    )


def test_a_network_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="failed for a batch of 1 rows"):
        measure_lane_count(MODEL, FakeNetwork(raise_on=set(range(99))))
    with pytest.raises(ValueError, match="candidates"):
        measure_lane_count(MODEL, FakeNetwork(), candidates=())
