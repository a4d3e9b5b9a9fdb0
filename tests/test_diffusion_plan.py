"""Plans: which timesteps they visit, and that they hold together."""

import numpy as np
import pytest

from diffusion.plan import Plan, lay_out, spaced_timesteps
from diffusion.schedule import linear_schedule


def test_every_number_of_steps_gives_distinct_falling_timesteps() -> None:
    for total in (1, 2, 3, 10, 257, 1000):
        for num_steps in range(1, total + 1):
            timesteps = spaced_timesteps(total, num_steps)
            assert timesteps.shape == (num_steps,)
            assert timesteps[0] == total - 1
            assert np.all(np.diff(timesteps) < 0)
            assert timesteps[-1] == (0 if num_steps > 1 else total - 1)


def test_timesteps_are_evenly_spread() -> None:
    assert spaced_timesteps(1000, 4).tolist() == [999, 666, 333, 0]
    # 999 k / 7 = ..., 713.6, 570.9, 428.1, ...: to the nearest, not down.
    assert spaced_timesteps(1000, 8).tolist() == [999, 856, 714, 571, 428, 285, 143, 0]
    assert spaced_timesteps(1000, 1).tolist() == [999]
    assert spaced_timesteps(5, 5).tolist() == [4, 3, 2, 1, 0]
    assert set(np.diff(spaced_timesteps(1000, 7))) <= {-166, -167}


@pytest.mark.parametrize("num_steps", [0, -1, 11])
def test_number_of_steps_out_of_range_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"num_steps must be in 1\.\.10, got {num_steps}"):
        spaced_timesteps(10, num_steps)


def test_a_plan_holds_the_levels_of_its_timesteps_in_float32() -> None:
    schedule = linear_schedule(10)
    plan = lay_out(schedule, np.array([9, 4, 0]), np.arange(12.0).reshape(3, 4))
    assert plan.num_steps == 3
    assert plan.timesteps.dtype == np.int64
    for column in (plan.alpha, plan.sigma, plan.coefficients):
        assert column.dtype == np.float32
    np.testing.assert_array_equal(plan.alpha, schedule.alpha[[9, 4, 0]].astype(np.float32))
    np.testing.assert_array_equal(plan.sigma, schedule.sigma[[9, 4, 0]].astype(np.float32))
    assert plan.coefficients.tolist() == np.arange(12.0).reshape(3, 4).tolist()


def test_a_plan_cannot_be_changed() -> None:
    plan = lay_out(linear_schedule(3), np.array([2, 0]), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="read-only"):
        plan.coefficients[0, 0] = 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timesteps": [0, 1]}, "timesteps must decrease"),
        ({"timesteps": [0, -1]}, "timesteps must decrease"),
        ({"timesteps": []}, "timesteps must have shape"),
        ({"alpha": [0.5]}, r"alpha must have shape \(2,\), got \(1,\)"),
        ({"sigma": [[0.5, 0.5]]}, "sigma must have shape"),
        ({"coefficients": [[1, 0, 0], [1, 0, 0]]}, r"coefficients must have shape \(2, 4\)"),
        ({"guided": [True]}, r"guided must have shape \(2,\), got \(1,\)"),
    ],
)
def test_a_plan_that_does_not_fit_together_is_refused(
    change: dict[str, object], message: str
) -> None:
    fields = {
        "timesteps": [1, 0],
        "alpha": [0.1, 0.9],
        "sigma": [0.9, 0.1],
        "coefficients": np.zeros((2, 4)),
        "guided": [True, False],
    }
    arrays = {name: np.array(value) for name, value in (fields | change).items()}
    with pytest.raises(ValueError, match=message):
        Plan(**arrays)
