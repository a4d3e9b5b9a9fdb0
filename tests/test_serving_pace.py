"""What a step costs: timed at start-up, then followed."""

import random

import numpy as np
import pytest

from serving.pace import Pace, StepCost

TIMED = {1: 0.51, 2: 0.52, 8: 0.58, 32: 0.82}  # 0.5 + 0.01 a row


def cost_of(pace: Pace) -> StepCost:
    assert pace.cost is not None
    return pace.cost


def test_nothing_is_known_before_the_first_step_if_nothing_was_timed() -> None:
    pace = Pace(10)
    pace.observe(rows=0, seconds=9.0)  # a step without a batch
    pace.observe(rows=9, seconds=0.0)
    assert pace.cost is None
    assert pace.seconds_per_row is None


def test_steps_give_a_cost_in_proportion_if_nothing_was_timed() -> None:
    pace = Pace(10)
    for _ in range(20):
        pace.observe(rows=10, seconds=1.0)
    assert [cost_of(pace).seconds(rows) for rows in (1, 10, 30)] == pytest.approx([0.1, 1.0, 3.0])
    assert pace.seconds_per_row == pytest.approx(0.1)


def test_the_sizes_that_were_timed_tell_what_others_cost() -> None:
    cost = cost_of(Pace(128, TIMED))
    for rows in (1, 2, 5, 8, 20, 32):
        assert cost.seconds(rows) == pytest.approx(0.5 + 0.01 * rows)
        assert cost.rows_within(0.5 + 0.01 * rows) == rows
    assert cost.seconds(6.5) == pytest.approx(0.565)
    assert cost.rows_within(0.5) == 0
    # Beyond what was timed, and beyond what can be, a row costs what one of the largest did.
    assert cost.seconds(64) == pytest.approx(2 * 0.82)
    assert cost.seconds(256) == pytest.approx(8 * 0.82)
    assert cost.rows_within(1e9) == 128


def test_rows_that_are_padded_to_cost_nothing_more() -> None:
    cost = cost_of(Pace(32, TIMED, padded_rows=lambda rows: next(n for n in TIMED if n >= rows)))
    assert cost.seconds(3) == cost.seconds(8) == pytest.approx(0.58)
    assert cost.rows_within(0.6) == 8


def test_the_least_rows_that_use_the_network_well() -> None:
    cost = cost_of(Pace(32, TIMED))
    rates = {rows: rows / cost.seconds(rows) for rows in range(1, 33)}
    for efficiency in (0.1, 0.5, 0.9, 1.0):
        rows = cost.efficient_rows(1, 32, efficiency)
        assert rates[rows] >= 0.999 * efficiency * rates[32]
        assert rows == 1 or rates[rows - 1] < efficiency * rates[32]
    assert cost.efficient_rows(30.5, 32, 0.1) == 31
    assert cost.efficient_rows(32, 32, 0.9) == 32
    assert cost.efficient_rows(40, 32, 0.9) == 32


def test_the_pace_follows_the_engine() -> None:
    pace = Pace(32, TIMED)
    for slower in (3.0, 2.0):
        for rows in (1, 8) * 150:
            pace.observe(rows, slower * (0.5 + 0.01 * rows))
    for rows in (1, 8, 32):
        assert cost_of(pace).seconds(rows) == pytest.approx(2.0 * (0.5 + 0.01 * rows), rel=0.01)
    assert pace.seconds_per_row == pytest.approx(2.0 * (0.51 + 0.58) / 9, rel=0.01)


@pytest.mark.parametrize("seed", range(10))
def test_steps_that_are_held_up_do_not_change_how_sizes_compare(seed: int) -> None:
    chance, pace = random.Random(seed), Pace(32, TIMED)
    for _ in range(500):  # of nearly one size, some of them ten times as long
        rows = chance.choice((16, 16, 16, 17))
        pace.observe(rows, (0.5 + 0.01 * rows) * chance.choice((1, 1, 1, 1, 10)))
    assert cost_of(pace).seconds(32) / cost_of(pace).seconds(1) == pytest.approx(0.82 / 0.51)


def test_a_size_that_was_held_up_when_it_was_timed_makes_more_rows_no_cheaper() -> None:
    cost = cost_of(Pace(32, TIMED | {2: 9.0}))
    assert cost.seconds(2) == pytest.approx(cost.seconds(8))
    assert (np.diff(cost.by_rows) >= 0).all()
