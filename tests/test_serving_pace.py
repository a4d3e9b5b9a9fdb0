"""What a step costs, learned from the steps."""

import pytest

from serving.pace import Pace, StepCost


def test_nothing_is_known_before_the_first_step() -> None:
    pace = Pace()
    assert pace.cost is None
    assert pace.seconds_per_row is None
    pace.observe(rows=0, seconds=9.0)  # a step without a batch
    pace.observe(rows=9, seconds=0.0)
    assert pace.cost is None


def test_steps_of_one_size_give_a_cost_in_proportion() -> None:
    pace = Pace()
    for _ in range(20):
        pace.observe(rows=10, seconds=1.0)
    assert pace.cost == StepCost(pytest.approx(0.0), pytest.approx(0.1))
    assert pace.seconds_per_row == pytest.approx(0.1)


def test_steps_of_several_sizes_tell_the_fixed_cost_from_that_of_the_rows() -> None:
    pace = Pace()
    for rows in (1, 4, 2, 32, 8) * 4:
        pace.observe(rows, 0.5 + 0.01 * rows)
    assert pace.cost == StepCost(pytest.approx(0.5), pytest.approx(0.01))
    assert pace.cost.seconds(100) == pytest.approx(1.5)
    assert pace.cost.rows_within(1.5) == pytest.approx(100)
    assert pace.cost.rows_within(0.1) == 0.0


def test_the_pace_follows_the_engine() -> None:
    pace = Pace()
    for seconds_per_row in (0.1, 0.2):
        for rows in (1, 10) * 150:
            pace.observe(rows, seconds_per_row * rows)
    assert pace.seconds_per_row == pytest.approx(0.2, rel=0.01)
    assert pace.cost is not None
    assert pace.cost.seconds(10) == pytest.approx(2.0, rel=0.01)


def test_noise_makes_neither_rows_nor_steps_cost_less_than_nothing() -> None:
    pace = Pace()
    for rows, seconds in ((10, 2.0), (20, 1.0)) * 10:  # more rows took less time
        pace.observe(rows, seconds)
    assert pace.cost is not None
    assert pace.cost.seconds_per_row > 0.0
    steep = Pace()
    for rows, seconds in ((10, 1.0), (20, 4.0)) * 10:
        steep.observe(rows, seconds)
    assert steep.cost is not None
    assert steep.cost.fixed_seconds >= 0.0
