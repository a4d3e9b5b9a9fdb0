"""What a run has cost so far, and how long it will still take."""

import functools

import torch

from diffusion.schedule import cosine_schedule
from training.config import ModelConfig
from training.model import DiffusionModel

CALLS_PER_TRAINED_IMAGE = 3
"""One forward; and two more for the gradients with respect to activations and to weights (Kaplan
et al. 2020, arXiv:2001.08361, section 2.1)."""


@functools.cache
def forward_flop(config: ModelConfig) -> int:
    """FLOP of one call of the network on one image, embedding included, counted by PyTorch.

    Convolutions and matrix products, two FLOP per multiply-add; the rest, under a hundredth of
    them, is left out. What validation and sample grids cost is not part of it either.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    model = DiffusionModel(config, cosine_schedule(2))  # the noise levels change no shape
    x_t = torch.zeros(1, config.image_channels, config.image_size, config.image_size)
    zero = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x_t, zero, zero)
    return int(counter.get_total_flops())


def training_flop(config: ModelConfig, images_seen: int) -> int:
    """FLOP of all train steps that have seen so many images, with repetition."""
    return CALLS_PER_TRAINED_IMAGE * forward_flop(config) * images_seen


def remaining_seconds(done: int, left: int, seconds: float) -> float:
    """Time that ``left`` train steps will take if they go on as ``done``, at least 1, did."""
    return left * seconds / done
