"""The trained function as one module: (x_t, t, label) -> eps."""

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.schedule import Schedule
from training.config import ModelConfig
from training.embedding import ConditionEmbedding
from training.unet import UNet


class DiffusionModel(nn.Module):
    """The two parts that the bundle ships as two graphs, composed.

    ``embedding`` depends on (t, label) only, so the server tabulates it; ``unet`` is what each
    engine step runs.

    Args:
        config: shape of the network.
        schedule: the noise levels; they enter only where ``config.prediction`` is not eps.
    """

    def __init__(self, config: ModelConfig, schedule: Schedule) -> None:
        super().__init__()
        self.config = config
        self.embedding = ConditionEmbedding(
            config.num_labels,
            config.sinusoidal_width,
            config.embedding_width,
            output_scales(config, schedule),
        )
        self.unet = UNet(config)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x_t: [B, C, H, W] float; t: [B] int64 in 0..T-1; label: [B] int64. Returns eps as x_t."""
        return self.unet(x_t, self.embedding(t, label))


def output_scales(config: ModelConfig, schedule: Schedule) -> Tensor | None:
    """What x_t and the last convolution are multiplied by to make eps: float32 [T, 2], or None.

    From x_t = alpha x_0 + sigma eps and v = alpha eps - sigma x_0 follows eps = sigma x_t + alpha v
    (Salimans and Ho 2022, appendix D). So where there is hardly any signal left, eps is right from
    the start, and x_0 does not suffer from an error on eps multiplied by sigma / alpha.
    """
    if config.prediction == "eps":
        return None
    of_network = np.ones_like(schedule.alpha) if config.prediction != "v" else schedule.alpha
    return torch.tensor(np.stack([schedule.sigma, of_network], axis=1), dtype=torch.float32)
