"""Schedules: end points, monotony, the values of the paper, and what is refused."""

import math

import numpy as np
import pytest

from diffusion.schedule import Schedule, cosine_schedule, linear_schedule


def test_cosine_spans_the_log_snr_it_was_cut_to() -> None:
    log_snr = cosine_schedule().log_snr
    assert log_snr.shape == (1000,)
    assert log_snr[0] == pytest.approx(8.0, abs=1e-10)
    assert log_snr[-1] == pytest.approx(-10.0, abs=1e-10)
    other = cosine_schedule(50, log_snr_max=4.0, log_snr_min=-6.0).log_snr
    assert (other[0], other[-1]) == pytest.approx((4.0, -6.0), abs=1e-10)


def test_cosine_between_its_ends_is_a_cosine() -> None:
    alpha = cosine_schedule(1000).alpha
    # Equal steps of the angle arccos(alpha): sampled from one cosine.
    steps = np.diff([math.acos(a) for a in alpha])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    assert alpha[0] == pytest.approx(1.0 / math.sqrt(1.0 + math.exp(-8.0)), rel=1e-12)


@pytest.mark.parametrize("schedule", [cosine_schedule(), linear_schedule(), cosine_schedule(2)])
def test_noise_only_ever_grows(schedule: Schedule) -> None:
    assert np.all(np.diff(schedule.alphas_cumprod) < 0.0)
    assert np.all(np.diff(schedule.log_snr) < 0.0)
    assert np.all((schedule.betas > 0.0) & (schedule.betas < 1.0))


def test_linear_is_that_of_ho_et_al() -> None:
    schedule = linear_schedule()
    assert schedule.num_train_timesteps == 1000
    kept, expected = 1.0, []
    for t in range(1000):
        kept *= 1.0 - (1e-4 + (0.02 - 1e-4) * t / 999)
        expected.append(kept)
    np.testing.assert_allclose(schedule.alphas_cumprod, expected, rtol=1e-12)
    assert schedule.alphas_cumprod[0] == pytest.approx(0.9999, abs=1e-15)
    assert schedule.alphas_cumprod[-1] == pytest.approx(4.0358e-5, rel=1e-4)


def test_derived_quantities_agree_with_the_forward_process() -> None:
    schedule = linear_schedule(100)
    np.testing.assert_allclose(schedule.betas, np.linspace(1e-4, 0.02, 100), rtol=1e-10)
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1.0, rtol=1e-14)
    snr = np.exp(schedule.log_snr)
    np.testing.assert_allclose(snr, schedule.alpha**2 / schedule.sigma**2, rtol=1e-10)


def test_a_schedule_can_be_rebuilt_from_its_numbers() -> None:
    schedule = cosine_schedule(20)
    again = Schedule(np.array([float(str(a)) for a in schedule.alphas_cumprod.tolist()]))
    np.testing.assert_array_equal(again.alphas_cumprod, schedule.alphas_cumprod)


def test_a_schedule_keeps_its_own_unchangeable_copy() -> None:
    abar = np.array([0.9, 0.5])
    schedule = Schedule(abar)
    abar[0] = 0.6
    assert schedule.alphas_cumprod[0] == 0.9
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 0.6


@pytest.mark.parametrize(
    ("abar", "message"),
    [
        ([], "one-dimensional"),
        ([[0.5]], "one-dimensional"),
        ([1.0, 0.5], r"\(0, 1\), got 1.0 at t = 0"),
        ([0.9, 0.0], r"\(0, 1\), got 0.0 at t = 1"),
        ([0.9, math.nan, 0.1], r"\(0, 1\), got nan at t = 1"),
        ([0.9, 0.9], "strictly decreasing, got 0.9 after 0.9 at t = 1"),
        ([0.9, 0.2, 0.3], "strictly decreasing, got 0.3 after 0.2 at t = 2"),
    ],
)
def test_levels_that_are_no_schedule_are_refused(abar: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=f"alphas_cumprod must .*{message}"):
        Schedule(np.array(abar))


def test_cosine_names_what_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="num_train_timesteps must be at least 2, got 1"):
        cosine_schedule(1)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (-10.0, 40.0)):
        with pytest.raises(ValueError, match=f"got log_snr_min {low} and log_snr_max {high}"):
            cosine_schedule(10, log_snr_max=high, log_snr_min=low)


def test_linear_names_what_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="num_train_timesteps must be at least 1, got 0"):
        linear_schedule(0)
    for start, end in ((0.0, 0.02), (0.03, 0.02), (1e-4, 1.0), (math.nan, 0.02)):
        with pytest.raises(ValueError, match=f"got beta_start {start} and beta_end {end}"):
            linear_schedule(10, start, end)
