"""One digit that drowns in noise, and another that comes out of it."""

import math

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffusion.noise import INITIAL_STEP, standard_normal
from diffusion.plan import Float32Array, Int64Array
from diffusion.reference import sample, to_uint8
from diffusion.update import predict_x_0
from tools.docs_pictures.model import Model
from tools.docs_pictures.picture import Data
from tools.docs_pictures.sheet import GREY, Sheet

LABEL, SEED = 3, 0
SAMPLER, NUM_STEPS = "ddim_stochastic", 9
_SCALE, _CELL, _LEFT, _TOP = 2, 70, 134, 30


def measure(model: Model) -> Data:
    """x_t on the way there, and x_t and the estimates of x_0 on the way back."""
    plan = model.plan(SAMPLER, NUM_STEPS)
    seen: list[Float32Array] = []
    estimates: list[Float32Array] = []

    def watched(x_t: Float32Array, t: Int64Array, label: Int64Array) -> Float32Array:
        eps = model.eps(x_t, t, label)
        step = len(seen)
        seen.append(x_t.copy())
        levels = plan.alpha[step : step + 1], plan.sigma[step : step + 1]
        estimates.append(predict_x_0(x_t, eps, *levels, 1.0))
        return eps

    x_0 = sample(watched, plan, [LABEL], SEED, model.image_shape, model.null_label)
    alpha = plan.alpha[::-1, None, None, None]
    sigma = plan.sigma[::-1, None, None, None]
    noised = alpha * x_0 + sigma * _noise(model.image_shape)  # as in training
    return {
        "timesteps": plan.timesteps,
        "there": _pixels([x_0, *noised[:, None]]),
        "back": _pixels([*seen, x_0]),
        "estimates": _pixels(estimates),
    }


def _noise(image_shape: tuple[int, ...]) -> Float32Array:
    zero = np.zeros(1, np.int64)
    size = math.prod(image_shape)
    eps = standard_normal(np.full(1, SEED + 1, np.uint64), zero, zero + INITIAL_STEP, size)
    return eps.reshape(1, *image_shape)


def _pixels(images: list[Float32Array]) -> NDArray[np.uint8]:
    # Half the contrast, so that the noise is not clipped away.
    return to_uint8(np.concatenate(images)[:, 0] * np.float32(0.5))


def draw(data: Data) -> Figure:
    """Three rows: there, back, and what the network takes for the image meanwhile."""
    t = data["timesteps"]
    columns = len(t) + 1
    sheet = Sheet(_LEFT + columns * _CELL + 6, _TOP + 3 * 92 + 2)
    headings = (
        ["image", *(f"t = {each}" for each in t[::-1])],
        [*(f"t = {each}" for each in t), "image"],
    )
    rows = (
        ("there", "adding noise\n(training)", headings[0]),
        ("back", "taking it away\n(drawing)", headings[1]),
        ("estimates", "what the network\ntakes for the\nimage meanwhile", headings[1][:-1]),
    )
    for row, (name, title, heads) in enumerate(rows):
        top = _TOP + row * 92
        sheet.text(8, top + 28, title, fontsize=9)
        for column, head in enumerate(heads):
            left = _LEFT + column * _CELL
            sheet.text(left + 28, top - 10, head, fontsize=8, ha="center", color=GREY)
            sheet.image(data[name][column], left, top, _SCALE)
    return sheet.figure
