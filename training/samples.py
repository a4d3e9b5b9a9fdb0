"""Pictures of a model in training: a grid of samples, one row per label."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusion.reference import sample, to_uint8
from diffusion.samplers import make_plan
from diffusion.schedule import Schedule
from training.config import ModelConfig
from training.disk import write_atomically
from training.model import DiffusionModel

PER_LABEL = 8
_ROWS = 100
"""Images in a call of the network, at most."""


def draw_images(
    model: DiffusionModel,
    schedule: Schedule,
    labels: NDArray[np.int64],
    num_steps: int,
    device: torch.device,
) -> NDArray[np.uint8]:
    """One image per label by DDPM, seed 0, without guidance.

    Args:
        model: in eval mode, on ``device``.
        schedule: the one it was trained with.
        labels: int64 [N], 0 .. num_labels - 1.
        num_steps: of the sampler, 1 .. T.
        device: where the network is called; the update runs on the CPU.

    Returns:
        uint8 [N, C, H, W].
    """
    config: ModelConfig = model.config

    def network(
        x_t: NDArray[np.float32], t: NDArray[np.int64], label: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        eps = np.empty_like(x_t)
        for start in range(0, len(x_t), _ROWS):
            rows = slice(start, start + _ROWS)
            arguments = (torch.as_tensor(a[rows], device=device) for a in (x_t, t, label))
            with torch.no_grad():
                eps[rows] = model(*arguments).float().cpu().numpy()
        return eps

    shape = (config.image_channels, config.image_size, config.image_size)
    plan = make_plan("ddpm", schedule, num_steps)
    return to_uint8(sample(network, plan, labels, 0, shape, config.num_labels))


def draw_samples(
    model: DiffusionModel, schedule: Schedule, num_steps: int, device: torch.device
) -> NDArray[np.uint8]:
    """PER_LABEL images of each label by DDPM, seed 0: uint8 [num_labels * PER_LABEL, C, H, W]."""
    labels = np.repeat(np.arange(model.config.num_labels), PER_LABEL)
    return draw_images(model, schedule, labels, num_steps, device)


def save_grid(images: NDArray[np.uint8], columns: int, path: Path) -> None:
    """Tile uint8 [N, C, H, W] row by row, doubled in size, into one PNG."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.zeros((rows * columns, c, h, w), np.uint8)
    canvas[:n] = images
    tiled = canvas.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2)
    picture = Image.fromarray(tiled.reshape(rows * h, columns * w, c).squeeze())
    content = io.BytesIO()
    picture.resize((2 * columns * w, 2 * rows * h), Image.Resampling.NEAREST).save(content, "PNG")
    write_atomically(path, content.getvalue())
