"""The plan table: every handle finds its own plan, wherever the rows have moved."""

import numpy as np
import pytest

from diffusion.samplers import SAMPLERS, make_plan
from diffusion.schedule import cosine_schedule
from serving.plan_table import PlanTable

SCHEDULE = cosine_schedule(100)


def assert_laid_out(plans: PlanTable, handle: int, sampler: str, num_steps: int) -> None:
    plan = make_plan(sampler, SCHEDULE, num_steps)
    rows = plans.first_row[handle] + np.arange(num_steps)
    np.testing.assert_array_equal(plans.timesteps[rows], plan.timesteps)
    np.testing.assert_array_equal(plans.alpha[rows], plan.alpha)
    np.testing.assert_array_equal(plans.sigma[rows], plan.sigma)
    np.testing.assert_array_equal(plans.coefficients[rows], plan.coefficients)
    np.testing.assert_array_equal(plans.guided[rows], plan.guided)


def test_plans_in_use_stay_right_while_many_come_and_go_within_bounds() -> None:
    generator = np.random.default_rng(0)
    plans = PlanTable(SCHEDULE, cached_rows=400)
    held: list[tuple[int, str, int]] = []
    for _ in range(400):
        sampler, num_steps = str(generator.choice(list(SAMPLERS))), int(generator.integers(1, 101))
        held.append((plans.acquire(sampler, num_steps), sampler, num_steps))
        if len(held) > 5:
            handle, *_ = held.pop(int(generator.integers(len(held))))
            plans.release(handle)
        for entry in held[::2]:
            assert_laid_out(plans, *entry)
    assert len(plans.timesteps) <= 2 * 6 * 100  # what six plans can need, doubled
    assert len(plans.first_row) < 300


def test_one_plan_is_laid_out_once() -> None:
    plans = PlanTable(SCHEDULE)
    first = plans.acquire("ddpm", 10)
    assert plans.acquire("ddpm", 10) == first
    assert plans.acquire("ddim", 10) != first
    assert plans.rows_used == 20


def test_more_rows_in_use_than_cached_are_kept_all() -> None:
    plans = PlanTable(SCHEDULE, cached_rows=10)
    handles = {steps: plans.acquire("dpmpp_2m", steps) for steps in range(1, 60)}
    for steps, handle in handles.items():
        assert_laid_out(plans, handle, "dpmpp_2m", steps)


def test_an_unknown_sampler_changes_nothing() -> None:
    plans = PlanTable(SCHEDULE)
    with pytest.raises(ValueError, match="sampler"):
        plans.acquire("euler", 10)
    assert plans.rows_used == 0


def test_rows_left_are_two_where_the_plan_is_guided_and_guidance_is_asked_for() -> None:
    table = PlanTable(SCHEDULE)
    handles = [table.acquire(name, 8) for name in ("ddpm", "ddim_stochastic")]
    guided = make_plan("ddim_stochastic", SCHEDULE, 8).guided
    for position in range(9):
        assert table.rows_left(handles[0], position, False) == 8 - position
        assert table.rows_left(handles[0], position, True) == 2 * (8 - position)
        expected = 8 - position + int(guided[position:].sum())
        assert table.rows_left(handles[1], position, True) == expected
