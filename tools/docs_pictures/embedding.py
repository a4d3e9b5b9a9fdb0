"""What the network is told of the timestep."""

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tools.docs_pictures.model import Model
from tools.docs_pictures.picture import Data
from training.embedding import SinusoidalPositionEmbedding

WIDTH, STRIDE, FOCUS, LABEL = 128, 4, (100, 500, 900), 3


def measure(model: Model) -> Data:
    """The sinusoids, and how alike two timesteps are, before and after the MLP."""
    t = np.arange(model.schedule.num_train_timesteps)
    sinusoids = SinusoidalPositionEmbedding(WIDTH)(torch.from_numpy(t)).numpy()
    learned = model.source.model.embedding_table[:, LABEL]
    return {
        "timesteps": t[::STRIDE],
        "sinusoids": sinusoids[::STRIDE].astype(np.float16),
        "sinusoid_likeness": _likeness(sinusoids)[:, ::STRIDE],
        "learned_likeness": _likeness(learned)[:, ::STRIDE],
    }


def _likeness(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine of the angle between each of FOCUS and every timestep: [FOCUS, T]."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    likeness: NDArray[np.float32] = (unit[list(FOCUS)] @ unit.T).astype(np.float32)
    return likeness


def draw(data: Data) -> Figure:
    """A heat map of t against dimension; beside it, how alike t and its neighbours are."""
    t = data["timesteps"]
    figure = Figure(figsize=(8.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    shown = left.imshow(
        data["sinusoids"].astype(np.float32), aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1,
        extent=(-0.5, WIDTH - 0.5, int(t[-1]) + STRIDE, 0), interpolation="nearest",
    )  # fmt: skip
    left.axvline(WIDTH / 2 - 0.5, color="black", linewidth=1)
    left.set_xticks([0, 32, 64, 96, 127])
    left.set_xlabel("dimension:  sin, fast to slow | cos, fast to slow")
    left.set_ylabel("timestep t")
    left.set_title("the sinusoidal embedding", fontsize=11)
    figure.colorbar(shown, ax=left, pad=0.02, ticks=[-1, 0, 1])
    for i, focus in enumerate(FOCUS):
        colour = f"C{i}"
        right.plot(t, data["sinusoid_likeness"][i], color=colour, label=f"t = {focus}")
        right.plot(t, data["learned_likeness"][i], color=colour, linestyle="dotted")
    right.plot([], [], color="#555555", label="sinusoids")
    right.plot([], [], color="#555555", linestyle="dotted", label="after the MLP, with the label")
    right.set_xlim(0, int(t[-1]))
    right.set_xlabel("another timestep")
    right.set_ylabel("cosine of the angle between both")
    right.set_title("neighbours stay neighbours", fontsize=11)
    right.grid(visible=True, alpha=0.25)
    figure.legend(
        *right.get_legend_handles_labels(), fontsize=9, loc="outside lower right", ncols=5
    )
    return figure
