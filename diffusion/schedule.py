"""Noise schedules: how much of the image is left at each timestep t = 0 .. T-1.

x_t = alpha_t * x_0 + sigma_t * eps, with alpha_t^2 = abar_t and sigma_t^2 = 1 - abar_t
(Ho et al. 2020, "Denoising Diffusion Probabilistic Models", Eq. 4; their t = 1 is our t = 0).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of a forward process, in float64.

    Args:
        alphas_cumprod: abar_t, [T], strictly decreasing, each in the open interval (0, 1).
            Any sequence of numbers is taken; a read-only float64 copy is kept.

    Raises:
        ValueError: if alphas_cumprod is not as above.
    """

    alphas_cumprod: FloatArray

    def __post_init__(self) -> None:
        abar = np.array(self.alphas_cumprod, dtype=np.float64)
        if abar.ndim != 1 or abar.size == 0:
            raise ValueError(
                f"alphas_cumprod must be one-dimensional and not empty, got shape {abar.shape}"
            )
        outside = np.flatnonzero(~((abar > 0.0) & (abar < 1.0)))  # catches NaN as well
        if outside.size:
            at = int(outside[0])
            raise ValueError(f"alphas_cumprod must lie in (0, 1), got {abar[at]} at t = {at}")
        rising = np.flatnonzero(np.diff(abar) >= 0.0)
        if rising.size:
            at = int(rising[0]) + 1
            raise ValueError(
                "alphas_cumprod must be strictly decreasing, "
                f"got {abar[at]} after {abar[at - 1]} at t = {at}"
            )
        abar.flags.writeable = False
        object.__setattr__(self, "alphas_cumprod", abar)

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of timesteps the network is trained on."""
        return int(self.alphas_cumprod.size)

    @property
    def alpha(self) -> FloatArray:
        """What x_0 is multiplied by in x_t: sqrt(abar_t), [T]."""
        alpha: FloatArray = np.sqrt(self.alphas_cumprod)
        return alpha

    @property
    def sigma(self) -> FloatArray:
        """What eps is multiplied by in x_t: sqrt(1 - abar_t), [T]."""
        sigma: FloatArray = np.sqrt(1.0 - self.alphas_cumprod)
        return sigma

    @property
    def log_snr(self) -> FloatArray:
        """Natural logarithm of the signal-to-noise ratio alpha_t^2 / sigma_t^2, [T]."""
        log_snr: FloatArray = np.log(self.alphas_cumprod) - np.log1p(-self.alphas_cumprod)
        return log_snr

    @property
    def betas(self) -> FloatArray:
        """beta_t = 1 - abar_t / abar_{t-1}, with abar_{-1} = 1, [T] (Ho et al. 2020, Eq. 2)."""
        before = np.concatenate(([1.0], self.alphas_cumprod[:-1]))
        betas: FloatArray = 1.0 - self.alphas_cumprod / before
        return betas


def cosine_schedule(
    num_train_timesteps: int = 1000, log_snr_max: float = 8.0, log_snr_min: float = -10.0
) -> Schedule:
    """The cosine schedule, cut to a range of log-SNR.

    abar = cos(theta)^2 with theta linear in t (Nichol & Dhariwal 2021, Eq. 17, without their
    offset), so that log-SNR = -2 ln tan(theta). Only the arc between log_snr_max (at t = 0) and
    log_snr_min (at t = T-1) is walked (Kingma & Gao 2023, "Understanding Diffusion Objectives as
    the ELBO", Table 3). Uncut, abar at T-1 is so small that the sampler multiplies errors by 2e4.

    Args:
        num_train_timesteps: T, at least 2.
        log_snr_max: log-SNR at t = 0, natural logarithm.
        log_snr_min: log-SNR at t = T-1, below log_snr_max.

    Raises:
        ValueError: for arguments out of range; also where abar would round to 0 or 1.
    """
    if num_train_timesteps < 2:
        raise ValueError(f"num_train_timesteps must be at least 2, got {num_train_timesteps}")
    # A NaN fails the comparison; the far ends would round abar to 0 or 1.
    if not -700.0 < log_snr_min < log_snr_max < 36.0:
        raise ValueError(
            "log_snr_min must be below log_snr_max, both in -700..36, "
            f"got log_snr_min {log_snr_min} and log_snr_max {log_snr_max}"
        )
    theta_first = math.atan(math.exp(-0.5 * log_snr_max))  # log-SNR = -2 ln tan(theta)
    theta_last = math.atan(math.exp(-0.5 * log_snr_min))
    theta = np.linspace(theta_first, theta_last, num_train_timesteps)
    return Schedule(np.cos(theta) ** 2)  # abar_t = cos(theta_t)^2


def linear_schedule(
    num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Schedule:
    """Betas linear in t (Ho et al. 2020, section 4; the defaults are theirs).

    Args:
        num_train_timesteps: T, at least 1.
        beta_start: beta at t = 0, in (0, 1).
        beta_end: beta at t = T-1, in (0, 1), at least beta_start.

    Raises:
        ValueError: for arguments out of range.
    """
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {num_train_timesteps}")
    if not 0.0 < beta_start <= beta_end < 1.0:
        raise ValueError(
            "beta_start and beta_end must satisfy 0 < beta_start <= beta_end < 1, "
            f"got beta_start {beta_start} and beta_end {beta_end}"
        )
    betas = np.linspace(beta_start, beta_end, num_train_timesteps)
    abar = np.cumprod(1.0 - betas, dtype=np.float64)  # abar_t = prod_{s<=t} (1 - beta_s)
    return Schedule(abar)
