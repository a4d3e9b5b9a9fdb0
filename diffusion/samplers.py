"""Samplers: DDPM, DDIM(eta) and DPM-Solver++(2M), each as a table of update coefficients.

A sampler is a function (schedule, num_steps) -> Plan. To add one, write the function that gives
its coefficients and name it in SAMPLERS, and in GUIDED if guidance is not for all of its steps;
nothing else in the project knows samplers apart.

In this module `abar` [K] holds alphas_cumprod at the timesteps of the plan and `abar_next` [K] the
value each step goes to, which is 1 for the last (x_0 itself). The *_coefficients functions give
float64 [K, 4] tables of A, B, C, S in x = A*x_t + B*x_0 + C*x_0_previous + S*noise. Where x_0 was
clipped, eps means the eps that goes with the clipped x_0.

Order of convergence in 1 / num_steps: DDPM 1, DDIM(eta) 1, DPM-Solver++(2M) 2. It is that of the
variance (the mean is exact at any number of steps), tested on Gaussian data, on the way down to
t = 0; the last step, from there to x_0, gives the mean of x_0 given x_t and has no order.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from diffusion.plan import (
    BoolArray,
    Int64Array,
    Plan,
    check_num_steps,
    lay_out,
    shifted_timesteps,
    spaced_timesteps,
)
from diffusion.schedule import FloatArray, Schedule

STOCHASTIC_ETA = 0.75
STOCHASTIC_FIRST, STOCHASTIC_LAST, STOCHASTIC_POWER = 0.955, 0.06, 1.2
STOCHASTIC_GUIDED = (0.49, 0.6)
"""Of ddim_stochastic, found by sweeps on MNIST (docs/quality.md)."""


def ddpm(schedule: Schedule, num_steps: int) -> Plan:
    """Ancestral sampling with the posterior ("small") variance.

    With num_steps = T this is Ho et al. 2020 ("Denoising Diffusion Probabilistic Models"),
    Eqs. 6-7; below T it is the respaced process of Nichol & Dhariwal 2021 ("Improved Denoising
    Diffusion Probabilistic Models"), Eq. 19. Raises ValueError if num_steps is not in 1..T.
    """
    timesteps = spaced_timesteps(schedule.num_train_timesteps, num_steps)
    return lay_out(schedule, timesteps, ddpm_coefficients(*levels(schedule, timesteps)))


def ddim(schedule: Schedule, num_steps: int, eta: float = 0.0) -> Plan:
    """DDIM (Song et al. 2021, "Denoising Diffusion Implicit Models"), Eqs. 12 and 16.

    eta in 0..1: 0 draws no noise after x_T, 1 is DDPM. Raises ValueError if num_steps is not in
    1..T or eta is not in 0..1.
    """
    timesteps = spaced_timesteps(schedule.num_train_timesteps, num_steps)
    return lay_out(schedule, timesteps, ddim_coefficients(*levels(schedule, timesteps), eta))


def dpmpp_2m(schedule: Schedule, num_steps: int, order: int = 2) -> Plan:
    """DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", Algorithm 2).

    The first step, which has no x_0_previous, and the last, which goes to x_0, are of first order.
    order 1 makes every step so, which is DDIM with eta = 0. Raises ValueError if num_steps is not
    in 1..T or order is not 1 or 2.
    """
    timesteps = spaced_timesteps(schedule.num_train_timesteps, num_steps)
    return lay_out(schedule, timesteps, dpmpp_2m_coefficients(*levels(schedule, timesteps), order))


def ddim_stochastic(schedule: Schedule, num_steps: int) -> Plan:
    """DDIM(eta) for few steps, with noise, timesteps and a guidance interval of its own.

    Three changes to DDPM in few steps, each measured (docs/quality.md):

    - eta = STOCHASTIC_ETA. With few steps the posterior variance of DDPM, eta = 1, leaves images
      more varied than data, and eta = 0 less.
    - Timesteps from STOCHASTIC_FIRST to STOCHASTIC_LAST (as shares of T-1), a little denser at high
      noise, in place of T-1 .. 0. Nothing can be seen at T-1, and at 0 nothing is left to do, so
      that a call at either is lost; x_T stands for x at the first timestep.
    - Guidance, if it is asked for, between the two levels of STOCHASTIC_GUIDED only (Kynkaanniemi
      et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution
      Quality in Diffusion Models"), at one step at least: elsewhere it costs diversity or does
      nothing. One step with a large scale does what several with a small one do, for fewer rows.

    With num_steps near T the timesteps are moved apart, up to T-1 .. 0 for num_steps = T. Raises
    ValueError if num_steps is not in 1..T.
    """
    check_num_steps(schedule.num_train_timesteps, num_steps)
    timesteps = shifted_timesteps(schedule.num_train_timesteps, _stochastic_levels(num_steps))
    coefficients = ddim_coefficients(*levels(schedule, timesteps), STOCHASTIC_ETA)
    return lay_out(schedule, timesteps, coefficients, _stochastic_guided(num_steps))


def _stochastic_levels(num_steps: int) -> FloatArray:
    """first - (first - last) u^power for u = 0 .. 1, float64 [K]: shares of T-1."""
    u = np.linspace(0.0, 1.0, num_steps)
    return STOCHASTIC_FIRST - (STOCHASTIC_FIRST - STOCHASTIC_LAST) * u**STOCHASTIC_POWER


def _stochastic_guided(num_steps: int) -> BoolArray:
    """Which of these levels lie in STOCHASTIC_GUIDED, the nearest if none does, bool [K]."""
    level = _stochastic_levels(num_steps)
    away = np.abs(level - np.mean(STOCHASTIC_GUIDED))
    within = max(np.ptp(STOCHASTIC_GUIDED) / 2, away.min())
    guided: BoolArray = away <= within
    return guided


SAMPLERS: Mapping[str, Callable[[Schedule, int], Plan]] = MappingProxyType(
    {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "ddim_stochastic": ddim_stochastic}
)
GUIDED: Mapping[str, Callable[[int], BoolArray]] = MappingProxyType(
    {"ddim_stochastic": _stochastic_guided}
)
"""Which of num_steps steps a sampler's plans guide, bool [K], where that is not all of them."""


@functools.lru_cache(maxsize=4096)
def network_rows(sampler: str, num_steps: int, guidance_scale: float) -> int:
    """Rows of the network that one image costs: one a step, two where it is guided.

    Args:
        sampler: a name in SAMPLERS.
        num_steps: K, at least 1.
        guidance_scale: 1 is no guidance.
    """
    if guidance_scale == 1.0:
        return num_steps
    guided = GUIDED.get(sampler)
    return num_steps + (num_steps if guided is None else int(np.count_nonzero(guided(num_steps))))


def make_plan(sampler: str, schedule: Schedule, num_steps: int) -> Plan:
    """The plan of a sampler by name, with that sampler's defaults.

    Raises:
        ValueError: naming the field, its value and its range, if `sampler` is not in SAMPLERS or
            num_steps is not in 1..T.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    return SAMPLERS[sampler](schedule, num_steps)


def levels(schedule: Schedule, timesteps: Int64Array) -> tuple[FloatArray, FloatArray]:
    """(abar, abar_next), each float64 [K]: where each step is, and where it goes."""
    abar = schedule.alphas_cumprod[timesteps]
    return abar, np.append(abar[1:], 1.0)


def ddpm_coefficients(abar: FloatArray, abar_next: FloatArray) -> FloatArray:
    """Mean and standard deviation of q(x_next | x_t, x_0), float64 [K, 4]."""
    alpha_step = abar / abar_next
    beta = 1.0 - alpha_step  # Nichol & Dhariwal 2021, Eq. 19: beta of the respaced process
    # Ho et al. 2020, Eq. 7: mu = sqrt(abar_next) beta / (1 - abar) x_0
    #                             + sqrt(alpha_step) (1 - abar_next) / (1 - abar) x_t
    a = np.sqrt(alpha_step) * (1.0 - abar_next) / (1.0 - abar)
    b = np.sqrt(abar_next) * beta / (1.0 - abar)
    # Ho et al. 2020, Eq. 7: variance = (1 - abar_next) / (1 - abar) beta
    s = np.sqrt((1.0 - abar_next) / (1.0 - abar) * beta)
    return np.stack([a, b, np.zeros_like(a), s], axis=1)


def ddim_coefficients(abar: FloatArray, abar_next: FloatArray, eta: float = 0.0) -> FloatArray:
    """DDIM(eta), float64 [K, 4]."""
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be in 0..1, got {eta}")
    # Song et al. 2021, Eq. 16: s = eta sqrt((1 - abar_next) / (1 - abar)) sqrt(1 - abar/abar_next)
    s = eta * np.sqrt((1.0 - abar_next) / (1.0 - abar)) * np.sqrt(1.0 - abar / abar_next)
    # Song et al. 2021, Eq. 12: x = sqrt(abar_next) x_0 + sqrt(1 - abar_next - s^2) eps + s noise,
    # where eps = (x_t - sqrt(abar) x_0) / sqrt(1 - abar). max: 1 - abar_next - s^2 >= 0 exactly.
    toward_x_t = np.sqrt(np.maximum(1.0 - abar_next - s**2, 0.0))
    a = toward_x_t / np.sqrt(1.0 - abar)
    b = np.sqrt(abar_next) - a * np.sqrt(abar)
    return np.stack([a, b, np.zeros_like(a), s], axis=1)


def dpmpp_2m_coefficients(abar: FloatArray, abar_next: FloatArray, order: int = 2) -> FloatArray:
    """DPM-Solver++(2M), float64 [K, 4]; lambda = ln(alpha / sigma) is half the log-SNR."""
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    alpha, alpha_next = np.sqrt(abar), np.sqrt(abar_next)
    sigma, sigma_next = np.sqrt(1.0 - abar), np.sqrt(1.0 - abar_next)
    # Lu et al. 2022, Algorithm 2: x = sigma_next / sigma x_t - alpha_next (e^-h - 1) D, with
    # h = lambda_next - lambda. alpha_next (1 - e^-h) needs no logarithm, nor a finite lambda_next:
    a = sigma_next / sigma
    toward_d = alpha_next - alpha * sigma_next / sigma
    # D = (1 + 1/(2r)) x_0 - 1/(2r) x_0_previous, with r = h_previous / h; first order: D = x_0.
    half_over_r = np.zeros_like(abar)
    if order == 2 and abar.size > 2:
        h = np.diff(np.log(alpha) - np.log(sigma))  # of every step but the last, which has h = inf
        half_over_r[1:-1] = 0.5 * h[1:] / h[:-1]
    b = toward_d * (1.0 + half_over_r)
    c = -toward_d * half_over_r
    return np.stack([a, b, c, np.zeros_like(a)], axis=1)
