"""How much image and how much noise is left at each timestep."""

import numpy as np
from matplotlib.figure import Figure

from tools.docs_pictures.model import Model
from tools.docs_pictures.picture import Data


def measure(model: Model) -> Data:
    """The numbers of the manifest."""
    return {"alphas_cumprod": model.schedule.alphas_cumprod}


def draw(data: Data) -> Figure:
    """Shares of image and noise on the left, their ratio on the right."""
    abar = data["alphas_cumprod"]
    t = np.arange(len(abar))
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    shares, ratio = figure.subplots(1, 2)
    shares.plot(t, np.sqrt(abar), linewidth=2, label=r"image, $\sqrt{\bar\alpha_t}$")
    shares.plot(t, np.sqrt(1 - abar), linewidth=2, label=r"noise, $\sqrt{1-\bar\alpha_t}$")
    shares.set_title(r"$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$")
    shares.set_ylabel("factor")
    ratio.plot(t, 10 * np.log10(abar / (1 - abar)), color="#009e73", linewidth=2)
    ratio.axhline(0, color="#999999", linewidth=1)
    equal = int(np.argmin(np.abs(abar - 0.5)))
    ratio.annotate(
        f"as much noise\nas image: t = {equal}",
        (equal, 0), (equal + 60, 18), arrowprops={"arrowstyle": "->"}, fontsize=9,
    )  # fmt: skip
    ratio.set_title("signal-to-noise ratio")
    ratio.set_ylabel("decibels")
    shares.legend()
    for axes in (shares, ratio):
        axes.set_xlabel("timestep t")
        axes.set_xlim(0, len(abar) - 1)
        axes.grid(visible=True, alpha=0.25)
    return figure
