"""The reverse process as a plain loop: one plan, all images in step, no scheduling.

What the serving engine is tested against, and what export compares networks with.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from diffusion.noise import INITIAL_STEP, standard_normal
from diffusion.plan import Float32Array, Int64Array, Plan
from diffusion.update import advance, guide, predict_x_0

Network = Callable[[Float32Array, Int64Array, Int64Array], Float32Array]
"""(x_t float32 [N, ...], t int64 [N], label int64 [N]) -> eps float32 [N, ...]."""


def sample(
    network: Network,
    plan: Plan,
    labels: npt.ArrayLike,
    seed: int,
    image_shape: tuple[int, ...],
    null_label: int,
    guidance_scale: float = 1.0,
    first_index: int = 0,
    clip: float | None = 1.0,
) -> Float32Array:
    """Draws one image per label.

    Image i depends on (seed, first_index + i, labels[i]) and the other arguments, never on how
    many are drawn at once, as long as the network treats its rows alike.

    Args:
        network: predicts eps; called once per position of the plan, or twice (label, null) where
            the plan is guided and guidance_scale is not 1.
        plan: the sampler (make_plan).
        labels: int64 [N].
        seed: 0 .. 2^64 - 1.
        image_shape: [C, H, W] as a rule.
        null_label: the label that means "no label".
        guidance_scale: finite; 1 is the plain conditional model (update.guide). Any other is
            applied where the plan is guided.
        first_index: index of the first image, 0 .. 2^32 - N.
        clip: bound of |x_0| at every step; None for none.

    Returns:
        x_0, float32 [N, *image_shape]; within [-clip, clip], as every plan ends in x = x_0.

    Raises:
        ValueError: if seed, guidance_scale, labels or the indices are out of range.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in 0..{2**64 - 1}, got {seed}")
    if not np.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be finite, got {guidance_scale}")
    label = np.asarray(labels, dtype=np.int64)
    if label.ndim != 1:
        raise ValueError(f"labels must have shape [N], got {label.shape}")
    n, size = label.size, int(np.prod(image_shape, dtype=np.int64))
    seeds = np.full(n, seed, dtype=np.uint64)
    index = first_index + np.arange(n, dtype=np.int64)
    null = np.full(n, null_label, dtype=np.int64)
    scale = np.full(n, guidance_scale, dtype=np.float32)

    def noise_of(step: int) -> Float32Array:
        steps = np.full(n, step, dtype=np.int64)
        return standard_normal(seeds, index, steps, size).reshape(n, *image_shape)

    x = noise_of(INITIAL_STEP)
    x_0_previous = np.zeros_like(x)
    for k in range(plan.num_steps):
        t = np.full(n, plan.timesteps[k], dtype=np.int64)
        eps = network(x, t, label)
        if guidance_scale != 1.0 and plan.guided[k]:
            eps = guide(eps, network(x, t, null), scale)
        x_0 = predict_x_0(x, eps, np.full(n, plan.alpha[k]), np.full(n, plan.sigma[k]), clip)
        rows = np.broadcast_to(plan.coefficients[k], (n, 4))
        x, x_0_previous = advance(x, x_0, x_0_previous, noise_of(k), rows), x_0
    return x


def to_uint8(x_0: Float32Array) -> npt.NDArray[np.uint8]:
    """Images in [-1, 1] as bytes: round((x + 1) * 127.5) after clipping, halves to even.

    Args:
        x_0: floating, any shape. Must not hold NaN.

    Returns:
        uint8, same shape: -1 is 0, 0 is 128, 1 is 255.
    """
    scaled = (np.clip(x_0, -1.0, 1.0) + 1.0) * 127.5
    pixels: npt.NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return pixels
