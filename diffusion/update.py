"""The reverse step, vectorised over lanes that are each at their own step of their own plan.

Everything is element-wise IEEE addition, multiplication and division, done in the dtype of the
image (float32 in reference.py and in the engine), in one fixed order. So a lane's result does not
depend on who shares the batch, and two programs that call these functions agree to the bit.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.floating[Any]]


def predict_x_0(
    x_t: Images, eps: Images, alpha: Images, sigma: Images, clip: float | None = 1.0
) -> Images:
    """The clean image that goes with a noise prediction: (x_t - sigma * eps) / alpha.

    Ho et al. 2020, Eq. 15, and after it the clipping of their sampler.

    Args:
        x_t: [N, ...] noisy images.
        eps: [N, ...] predicted noise.
        alpha: [N] sqrt(abar) of each lane, above 0.
        sigma: [N] sqrt(1 - abar) of each lane.
        clip: bound of |x_0|; None leaves it unbounded.

    Returns:
        x_0 [N, ...] in the dtype of x_t, a new array. NaN stays NaN, in its own lane only.
    """
    x_0 = _per_lane(sigma, x_t) * eps
    np.subtract(x_t, x_0, out=x_0)
    x_0 /= _per_lane(alpha, x_t)  # x_0 = (x_t - sigma eps) / alpha
    if clip is not None:
        np.clip(x_0, -clip, clip, out=x_0)
    return x_0


def advance(
    x_t: Images, x_0: Images, x_0_previous: Images, noise: Images, coefficients: Images
) -> Images:
    """One reverse step: A*x_t + B*x_0 + C*x_0_previous + S*noise.

    Args:
        x_t: [N, ...] images at the current timestep.
        x_0: [N, ...] as predict_x_0 gave it.
        x_0_previous: [N, ...] the x_0 of each lane's step before; any finite numbers where C is 0.
        noise: [N, ...] standard normal; any finite numbers where S is 0.
        coefficients: [N, 4], each lane's row of its Plan.coefficients.

    Returns:
        x [N, ...] at the next timestep, in the dtype of x_t, a new array.
    """
    x = _per_lane(coefficients[:, 0], x_t) * x_t
    term = np.empty_like(x)
    for column, image in ((1, x_0), (2, x_0_previous), (3, noise)):
        np.multiply(_per_lane(coefficients[:, column], x_t), image, out=term)
        x += term
    return x


def guide(eps_label: Images, eps_null: Images, guidance_scale: Images) -> Images:
    """Classifier-free guidance: eps_null + guidance_scale * (eps_label - eps_null).

    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", Eq. 6, with guidance_scale = 1 + w.
    Scale 1 is eps_label up to rounding: callers leave those lanes out, and spare the second row.

    Args:
        eps_label: [N, ...] prediction for the label.
        eps_null: [N, ...] prediction for "no label".
        guidance_scale: [N].

    Returns:
        eps [N, ...] in the dtype of eps_label, a new array.
    """
    eps = eps_label - eps_null
    eps *= _per_lane(guidance_scale, eps_label)
    eps += eps_null
    return eps


def _per_lane(values: Images, images: Images) -> Images:
    """Shapes values [N] as [N, 1, ...], in the dtype of the images they multiply."""
    return np.asarray(values, dtype=images.dtype).reshape(-1, *(1,) * (images.ndim - 1))
