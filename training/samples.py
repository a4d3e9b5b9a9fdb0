"""Pictures of a model in training: a grid of samples, one row per label."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusion.reference import sample, to_uint8
from diffusion.samplers import make_plan
from diffusion.schedule import Schedule
from training.config import ModelConfig
from training.model import DiffusionModel

PER_LABEL = 8


def draw_samples(
    model: DiffusionModel, schedule: Schedule, num_steps: int, device: torch.device
) -> NDArray[np.uint8]:
    """PER_LABEL images of each label by DDPM, seed 0: uint8 [num_labels * PER_LABEL, C, H, W]."""
    config: ModelConfig = model.config
    labels = np.repeat(np.arange(config.num_labels), PER_LABEL)

    def network(
        x_t: NDArray[np.float32], t: NDArray[np.int64], label: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        arguments = (torch.as_tensor(a, device=device) for a in (x_t, t, label))
        with torch.no_grad():
            return model(*arguments).float().cpu().numpy()

    shape = (config.image_channels, config.image_size, config.image_size)
    plan = make_plan("ddpm", schedule, num_steps)
    x_0 = sample(network, plan, labels, 0, shape, config.num_labels)
    return to_uint8(x_0)


def save_grid(images: NDArray[np.uint8], columns: int, path: Path) -> None:
    """Tile uint8 [N, C, H, W] row by row, doubled in size, into one PNG."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.zeros((rows * columns, c, h, w), np.uint8)
    canvas[:n] = images
    tiled = canvas.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2)
    picture = Image.fromarray(tiled.reshape(rows * h, columns * w, c).squeeze())
    picture.resize((2 * columns * w, 2 * rows * h), Image.Resampling.NEAREST).save(path)
