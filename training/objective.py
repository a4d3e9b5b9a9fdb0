"""What one train step minimises (Ho et al. 2020, Algorithm 1), and its random numbers.

Every random number is a function of (seed, train step): nothing needs to be saved to resume to the
bit, and each process of a distributed run draws the global batch's numbers and takes its share.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from diffusion.schedule import FloatArray, Schedule
from training.config import TrainConfig


@dataclass(frozen=True)
class Draw:
    """Random numbers of one train step over the global batch."""

    t: Tensor  # [B] int64, 0..T-1
    eps: Tensor  # [B, C, H, W] float32
    drop_label: Tensor  # [B] bool


def draw(config: TrainConfig, train_step: int, device: torch.device) -> Draw:
    """t, eps and label dropout of the global batch of ``train_step``."""
    generator = torch.Generator(device)
    generator.manual_seed(config.seed * 1_000_003 + train_step)
    batch, model = config.batch_size, config.model
    u = torch.rand(batch, generator=generator, device=device)
    if config.t_sampling == "stratified":
        u = (torch.arange(batch, device=device) + u) / batch
    # float32 rounds (B-1+u)/B up to 1.0 now and then, hence the clamp.
    t = (u * config.num_train_timesteps).long().clamp_(max=config.num_train_timesteps - 1)
    shape = (batch, model.image_channels, model.image_size, model.image_size)
    eps = torch.randn(shape, generator=generator, device=device)
    drop_label = torch.rand(batch, generator=generator, device=device) < config.label_dropout
    return Draw(t, eps, drop_label)


class DiffusionLoss(nn.Module):
    """Mean squared error between eps and its prediction, weighted by noise level.

    A module around the model, so that DistributedDataParallel sees one forward call.
    """

    alpha: Tensor
    sigma: Tensor
    weight: Tensor

    def __init__(self, model: nn.Module, schedule: Schedule, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.null_label = config.model.num_labels
        self.register_buffer("alpha", torch.tensor(schedule.alpha, dtype=torch.float32))
        self.register_buffer("sigma", torch.tensor(schedule.sigma, dtype=torch.float32))
        weight = loss_weights(config.loss_weighting, schedule)
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32))

    def forward(self, x_0: Tensor, label: Tensor, random: Draw) -> Tensor:
        """x_0: [B, C, H, W] in [-1, 1]; label: [B] int64. Returns the scalar loss, float32."""
        alpha = self.alpha[random.t, None, None, None]
        sigma = self.sigma[random.t, None, None, None]
        x_t = alpha * x_0 + sigma * random.eps  # Ho et al. Eq. 4
        label = label.masked_fill(random.drop_label, self.null_label)
        prediction = self.model(x_t, random.t, label)
        error = (prediction.float() - random.eps).square().mean((1, 2, 3))  # Ho et al. Eq. 14
        return (self.weight[random.t] * error).mean()


def loss_weights(weighting: str, schedule: Schedule) -> FloatArray:
    """Weight of the squared error on eps at each timestep, float64 [T]."""
    alpha = schedule.alpha
    if weighting == "min_snr":
        snr = np.exp(schedule.log_snr)
        return np.minimum(snr, 5.0) / snr  # Hang et al. 2023, section 3.4, gamma = 5
    # Of a network that gives v the error on eps is alpha^2 times that on v.
    return alpha ** {"eps": 0.0, "soft_v": -1.0, "v": -2.0}[weighting]
