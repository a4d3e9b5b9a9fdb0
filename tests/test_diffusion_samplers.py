"""Samplers against independent arithmetic, and their orders of convergence.

On data distributed as N(mu, s^2) the best prediction is known in closed form: with
v = alpha^2 s^2 + sigma^2, eps = sigma (x - alpha mu) / v. It is linear in x, and so is every
update, so mean and variance of what a sampler draws are propagated exactly, without drawing.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from diffusion.plan import spaced_timesteps
from diffusion.reference import sample
from diffusion.samplers import (
    SAMPLERS,
    STOCHASTIC_ETA,
    STOCHASTIC_FIRST,
    STOCHASTIC_GUIDED,
    STOCHASTIC_LAST,
    ddim,
    ddim_coefficients,
    ddim_stochastic,
    ddpm,
    ddpm_coefficients,
    dpmpp_2m,
    dpmpp_2m_coefficients,
    levels,
    make_plan,
    network_rows,
)
from diffusion.schedule import Schedule, cosine_schedule, linear_schedule

Doubles = npt.NDArray[np.float64]
Coefficients = Callable[[Doubles, Doubles], Doubles]
SCHEDULES = {"cosine": cosine_schedule(), "linear": linear_schedule()}
TABLES: dict[str, Coefficients] = {
    "ddpm": ddpm_coefficients,
    "ddim": ddim_coefficients,
    "ddim_half": lambda abar, abar_next: ddim_coefficients(abar, abar_next, 0.5),
    "dpmpp_2m": dpmpp_2m_coefficients,
}


def table(schedule: Schedule, num_steps: int, coefficients: Coefficients) -> Doubles:
    timesteps = spaced_timesteps(schedule.num_train_timesteps, num_steps)
    return coefficients(*levels(schedule, timesteps))


# --- Against the papers ---------------------------------------------------------------------------


def test_ddpm_with_every_timestep_is_the_posterior_of_ho_et_al() -> None:
    rows = table(linear_schedule(), 1000, ddpm_coefficients)
    betas = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
    abar = list(itertools.accumulate((1.0 - beta for beta in betas), lambda p, a: p * a))
    for row, t in zip(rows, range(999, -1, -1), strict=True):
        before = abar[t - 1] if t else 1.0
        # Eq. 7, in the terms of the paper.
        of_x_0 = math.sqrt(before) * betas[t] / (1.0 - abar[t])
        of_x_t = math.sqrt(1.0 - betas[t]) * (1.0 - before) / (1.0 - abar[t])
        variance = (1.0 - before) / (1.0 - abar[t]) * betas[t]
        expected = (of_x_t, of_x_0, 0.0, math.sqrt(variance))
        assert row.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 50, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_ddpm_with_any_steps_is_bayes_rule(schedule: Schedule, num_steps: int) -> None:
    timesteps = spaced_timesteps(1000, num_steps)
    rows = table(schedule, num_steps, ddpm_coefficients)
    for k in range(num_steps - 1):
        now, then = schedule.alphas_cumprod[timesteps[k : k + 2]].tolist()
        # x_next ~ N(sqrt(then) x_0, 1 - then), seen through x_t ~ N(sqrt(ratio) x_next, 1 - ratio).
        ratio = now / then
        precision = 1.0 / (1.0 - then) + ratio / (1.0 - ratio)
        of_x_t = math.sqrt(ratio) / (1.0 - ratio) / precision
        of_x_0 = math.sqrt(then) / (1.0 - then) / precision
        expected = (of_x_t, of_x_0, 0.0, math.sqrt(1.0 / precision))
        assert rows[k].tolist() == pytest.approx(expected, rel=1e-9)
    assert rows[-1].tolist() == pytest.approx((0.0, 1.0, 0.0, 0.0), abs=1e-15)


@pytest.mark.parametrize("num_steps", [1000, 20])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_ddim_with_eta_1_is_ddpm(schedule: Schedule, num_steps: int) -> None:
    eta_1 = table(schedule, num_steps, lambda now, then: ddim_coefficients(now, then, 1.0))
    expected = table(schedule, num_steps, ddpm_coefficients)
    np.testing.assert_allclose(eta_1, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_equation_12(eta: float) -> None:
    schedule = SCHEDULES["cosine"]
    timesteps = spaced_timesteps(1000, 10)
    rows = table(schedule, 10, lambda now, then: ddim_coefficients(now, then, eta))
    x_0, eps, noise = 0.7, -1.3, 0.4
    for k, (a, b, c, s) in enumerate(rows.tolist()):
        now = float(schedule.alphas_cumprod[timesteps[k]])
        then = float(schedule.alphas_cumprod[timesteps[k + 1]]) if k < 9 else 1.0
        deviation = eta * math.sqrt((1.0 - then) / (1.0 - now) * (1.0 - now / then))
        direction = math.sqrt(max(0.0, 1.0 - then - deviation**2)) * eps
        expected = math.sqrt(then) * x_0 + direction + deviation * noise
        x_t = math.sqrt(now) * x_0 + math.sqrt(1.0 - now) * eps
        assert a * x_t + b * x_0 + s * noise == pytest.approx(expected, rel=1e-10)
        assert c == 0.0


@pytest.mark.parametrize("num_steps", [1, 2, 3, 20, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_dpm_solver_of_first_order_is_ddim(schedule: Schedule, num_steps: int) -> None:
    first = table(schedule, num_steps, lambda now, then: dpmpp_2m_coefficients(now, then, 1))
    expected = table(schedule, num_steps, ddim_coefficients)
    np.testing.assert_allclose(first, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_steps", [3, 4, 15])
def test_dpm_solver_is_algorithm_2(num_steps: int) -> None:
    schedule = SCHEDULES["cosine"]
    timesteps = spaced_timesteps(1000, num_steps).tolist()
    alpha = [float(schedule.alpha[t]) for t in timesteps]
    sigma = [float(schedule.sigma[t]) for t in timesteps]
    lam = [0.5 * float(schedule.log_snr[t]) for t in timesteps]
    x_0 = [math.sin(1.0 + k) for k in range(num_steps)]  # any predictions will do
    by_paper = by_table = 0.8
    for k, (a, b, c, s) in enumerate(table(schedule, num_steps, dpmpp_2m_coefficients).tolist()):
        if k == num_steps - 1:
            by_paper = x_0[k]
        else:
            h = lam[k + 1] - lam[k]
            d = x_0[k]
            if k > 0:
                r = (lam[k] - lam[k - 1]) / h
                d = (1.0 + 1.0 / (2.0 * r)) * x_0[k] - 1.0 / (2.0 * r) * x_0[k - 1]
            by_paper = sigma[k + 1] / sigma[k] * by_paper - alpha[k + 1] * math.expm1(-h) * d
        by_table = a * by_table + b * x_0[k] + c * (x_0[k - 1] if k else 0.0)
        assert s == 0.0
        assert by_table == pytest.approx(by_paper, rel=1e-10)


# --- What every sampler promises ------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("name", TABLES)
def test_every_step_keeps_the_signal_and_the_last_gives_x_0(name: str, num_steps: int) -> None:
    schedule = SCHEDULES["cosine"]
    rows = table(schedule, num_steps, TABLES[name])
    alpha = schedule.alpha[spaced_timesteps(1000, num_steps)]
    # With x_t = alpha x_0 and every prediction x_0, a step must give alpha_next x_0.
    signal = rows[:, 0] * alpha + rows[:, 1] + rows[:, 2]
    np.testing.assert_allclose(signal, np.append(alpha[1:], 1.0), rtol=1e-10)
    assert rows[0, 2] == 0.0  # there is no x_0_previous yet
    np.testing.assert_allclose(rows[-1], [0.0, 1.0, 0.0, 0.0], atol=1e-15)
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim_half"])
def test_every_step_of_ddpm_and_ddim_keeps_the_noise_level(name: str) -> None:
    schedule = SCHEDULES["linear"]
    a, _, _, s = table(schedule, 30, TABLES[name]).T
    sigma = schedule.sigma[spaced_timesteps(1000, 30)]
    reached = np.sqrt((a * sigma) ** 2 + s**2)
    np.testing.assert_allclose(reached, np.append(sigma[1:], 0.0), rtol=1e-10)


# --- Convergence on a Gaussian --------------------------------------------------------------------

MU, S2 = 0.3, 0.25
FINE = cosine_schedule(2**14 + 1)  # so fine that 2^k steps fall on timesteps exactly


def propagate(
    schedule: Schedule,
    num_steps: int,
    coefficients: Coefficients,
    start: tuple[float, float] | None = None,
    *,
    to_x_0: bool = False,
) -> tuple[float, float]:
    """Exact mean and variance of what comes out; by default at t = 0, before the last step.

    `start` is the mean and variance of x_T, by default those of the data, noised.
    """
    timesteps = spaced_timesteps(schedule.num_train_timesteps, num_steps)
    abar, abar_next = levels(schedule, timesteps)
    rows = coefficients(abar, abar_next)
    first_mean, first_variance = start or noised(schedule, -1)
    # State: (x, x_0_previous), its mean and its covariance.
    mean = np.array([first_mean, 0.0])
    covariance = np.array([[first_variance, 0.0], [0.0, 0.0]])
    for k in range(num_steps if to_x_0 else num_steps - 1):
        alpha, sigma2 = math.sqrt(abar[k]), 1.0 - abar[k]
        v = alpha**2 * S2 + sigma2
        # x_0 = (x - sigma eps) / alpha with eps = sigma (x - alpha mu) / v: slope x + offset.
        slope, offset = (1.0 - sigma2 / v) / alpha, sigma2 * MU / v
        a, b, c, s = rows[k]
        step = np.array([[a + b * slope, c], [slope, 0.0]])
        mean = step @ mean + np.array([b * offset, offset])
        covariance = step @ covariance @ step.T
        covariance[0, 0] += s**2
    return float(mean[0]), float(covariance[0, 0])


def noised(schedule: Schedule, t: int) -> tuple[float, float]:
    """Exact mean and variance of x_t."""
    abar = float(schedule.alphas_cumprod[t])
    return math.sqrt(abar) * MU, abar * S2 + 1.0 - abar


@pytest.mark.parametrize(
    ("name", "order"), [("ddpm", 1), ("ddim", 1), ("ddim_half", 1), ("dpmpp_2m", 2)]
)
def test_variance_converges_to_that_of_the_data_at_the_stated_order(name: str, order: int) -> None:
    # Measured at t = 0, so that neither the denoising of the last step nor the cut of log-SNR,
    # which do not shrink with more steps, is taken for an error of the solver.
    _, exact = noised(FINE, 0)
    errors = [
        abs(propagate(FINE, 2**k + 1, TABLES[name])[1] - exact) for k in range(9, 13)
    ]  # 512 .. 4096 steps
    measured = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.02)
    assert all(abs(m - order) < 0.07 for m in measured)
    assert abs(measured[-1] - order) < abs(measured[0] - order)


@pytest.mark.parametrize("num_steps", [2, 10, 100, 1000])
@pytest.mark.parametrize("name", TABLES)
def test_mean_is_that_of_the_data_at_any_number_of_steps(name: str, num_steps: int) -> None:
    mean, _ = propagate(SCHEDULES["cosine"], num_steps, TABLES[name], to_x_0=True)
    assert mean == pytest.approx(MU, abs=1e-12)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_a_point_converges_to_where_the_probability_flow_takes_it(name: str, order: int) -> None:
    # The flow of a Gaussian keeps the number of standard deviations from the mean: start at +1.
    mean_last, variance_last = noised(FINE, -1)
    mean_0, variance_0 = noised(FINE, 0)
    start = (mean_last + math.sqrt(variance_last), 0.0)
    exact = mean_0 + math.sqrt(variance_0)
    errors = [abs(propagate(FINE, 2**k + 1, TABLES[name], start)[0] - exact) for k in range(9, 13)]
    measured = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.02)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("ddpm", 1e-2), ("ddim", 5e-3), ("dpmpp_2m", 2e-3)]
)
def test_whole_plan_from_pure_noise_draws_the_data(name: str, tolerance: float) -> None:
    # All steps of the real schedule, from N(0, 1). What stays is the cut: alpha_T mu = 0.0067 mu
    # is missing at the start, and the last step draws the mean of x_0, not x_0, at log-SNR 8.
    mean, variance = propagate(SCHEDULES["cosine"], 1000, TABLES[name], (0.0, 1.0), to_x_0=True)
    assert mean == pytest.approx(MU, abs=0.0067 * MU)
    assert variance == pytest.approx(S2, rel=tolerance)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name in TABLES])
def test_drawn_samples_have_the_propagated_mean_and_variance(name: str) -> None:
    schedule, n = SCHEDULES["cosine"], 40_000

    def network(
        x_t: npt.NDArray[np.float32], t: npt.NDArray[np.int64], label: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        alpha, sigma = schedule.alpha[t][:, None], schedule.sigma[t][:, None]
        eps = sigma * (x_t - alpha * MU) / (alpha**2 * S2 + sigma**2)
        return np.asarray(eps, dtype=np.float32)

    plan = make_plan(name, schedule, 20)
    x = sample(network, plan, np.zeros(4), 5, (n // 4,), null_label=1, clip=None).astype(np.float64)
    mean, variance = propagate(schedule, 20, TABLES[name], (0.0, 1.0), to_x_0=True)
    assert x.mean() == pytest.approx(mean, abs=4.0 * math.sqrt(variance / n))
    assert x.var() == pytest.approx(variance, rel=4.0 * math.sqrt(2.0 / n))


# --- Plans by name --------------------------------------------------------------------------------


def test_plans_are_the_float32_of_the_tables() -> None:
    schedule = SCHEDULES["linear"]
    for plan, coefficients in (
        (ddpm(schedule, 7), TABLES["ddpm"]),
        (ddim(schedule, 7), TABLES["ddim"]),
        (ddim(schedule, 7, eta=0.5), TABLES["ddim_half"]),
        (dpmpp_2m(schedule, 7), TABLES["dpmpp_2m"]),
    ):
        assert plan.timesteps.tolist() == spaced_timesteps(1000, 7).tolist()
        expected = table(schedule, 7, coefficients).astype(np.float32)
        np.testing.assert_array_equal(plan.coefficients, expected)


def test_samplers_by_name() -> None:
    assert set(SAMPLERS) == {"ddpm", "ddim", "dpmpp_2m", "ddim_stochastic"}
    schedule = SCHEDULES["cosine"]
    made = {name: make_plan(name, schedule, 9).coefficients for name in SAMPLERS}
    np.testing.assert_array_equal(made["ddpm"], ddpm(schedule, 9).coefficients)
    np.testing.assert_array_equal(made["ddim"], ddim(schedule, 9, eta=0.0).coefficients)
    np.testing.assert_array_equal(made["dpmpp_2m"], dpmpp_2m(schedule, 9, order=2).coefficients)
    stochastic = ddim_stochastic(schedule, 9).coefficients
    np.testing.assert_array_equal(made["ddim_stochastic"], stochastic)
    assert made["ddpm"][:-1, 3].min() > 0.0
    assert not made["ddim"][:, 3].any()
    assert np.abs(made["dpmpp_2m"][1:-1, 2]).min() > 0.0


@pytest.mark.parametrize("num_train_timesteps", [50, 1000])
def test_stochastic_ddim_goes_from_its_first_to_its_last_level(num_train_timesteps: int) -> None:
    schedule = cosine_schedule(num_train_timesteps)
    last = num_train_timesteps - 1
    for num_steps in (2, 5, 8, 20):
        plan = ddim_stochastic(schedule, num_steps)
        timesteps = plan.timesteps
        assert timesteps[0] == round(STOCHASTIC_FIRST * last)
        assert timesteps[-1] == round(STOCHASTIC_LAST * last)
        coefficients = ddim_coefficients(*levels(schedule, timesteps), STOCHASTIC_ETA)
        np.testing.assert_array_equal(plan.coefficients, coefficients.astype(np.float32))


def test_stochastic_ddim_with_every_timestep_takes_every_timestep() -> None:
    assert ddim_stochastic(SCHEDULES["cosine"], 1000).timesteps.tolist() == list(range(999, -1, -1))
    for num_steps in (1, 243, 700, 970, 999):
        timesteps = ddim_stochastic(SCHEDULES["cosine"], num_steps).timesteps
        assert np.diff(timesteps).max(initial=-1) <= -1
        assert len(timesteps) == num_steps
        assert 0 <= timesteps[-1] <= timesteps[0] <= 999


def test_stochastic_ddim_is_guided_between_two_levels_and_the_others_everywhere() -> None:
    schedule = SCHEDULES["cosine"]
    least, most = (share * 999 for share in STOCHASTIC_GUIDED)
    for num_steps in (5, 9, 20, 100):
        plan = ddim_stochastic(schedule, num_steps)
        inside = (plan.timesteps >= least - 0.5) & (plan.timesteps <= most + 0.5)
        np.testing.assert_array_equal(plan.guided, inside)
        assert network_rows("ddim_stochastic", num_steps, 1.0) == num_steps
        assert network_rows("ddim_stochastic", num_steps, 2.0) == num_steps + inside.sum()
        for name in ("ddpm", "ddim", "dpmpp_2m"):
            assert make_plan(name, schedule, num_steps).guided.all()
            assert network_rows(name, num_steps, 2.0) == 2 * num_steps
    assert network_rows("ddim_stochastic", 9, 4.0) == 10


def test_stochastic_ddim_guides_the_nearest_step_where_none_lies_between_the_levels() -> None:
    middle = sum(STOCHASTIC_GUIDED) / 2 * 999
    for num_steps in (1, 2, 4, 6):
        plan = ddim_stochastic(SCHEDULES["cosine"], num_steps)
        away = np.abs(plan.timesteps - middle)
        assert plan.guided.sum() == 1
        assert plan.guided[away.argmin()]
        assert network_rows("ddim_stochastic", num_steps, 4.0) == num_steps + 1


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [-1, 0, 1001])
def test_number_of_steps_out_of_range_is_refused(name: str, num_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"num_steps must be in 1\.\.1000, got {num_steps}"):
        make_plan(name, SCHEDULES["cosine"], num_steps)


def test_other_fields_out_of_range_are_refused() -> None:
    schedule = SCHEDULES["cosine"]
    with pytest.raises(
        ValueError, match="sampler must be one of ddpm, ddim, dpmpp_2m, ddim_stochastic, got 'plms'"
    ):
        make_plan("plms", schedule, 10)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"eta must be in 0\.\.1, got {eta}"):
            ddim(schedule, 10, eta=eta)
    for order in (0, 3):
        with pytest.raises(ValueError, match=f"order must be 1 or 2, got {order}"):
            dpmpp_2m(schedule, 10, order=order)
