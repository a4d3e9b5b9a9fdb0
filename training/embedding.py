"""From (timestep, label) to the vector that conditions every block of the U-Net."""

import math

import torch
from torch import Tensor, nn


class SinusoidalPositionEmbedding(nn.Module):
    """Sinusoidal embedding of the timestep (Vaswani et al. 2017, section 3.5; Ho et al. 2020).

    Args:
        width: D, the number of output features; even and at least 4.
        max_period: the longest wavelength, over 2 pi, in timesteps.

    Raises:
        ValueError: width is odd or less than 4.
    """

    inv_freq: Tensor

    def __init__(self, width: int, max_period: float = 10_000.0) -> None:
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"width is {width}; it must be even and at least 4")
        half = width // 2
        beta = math.log(max_period) / (half - 1)
        # A buffer: computed once, moved with the module, frozen into the exported graph.
        self.register_buffer(
            "inv_freq", torch.exp(-beta * torch.arange(half, dtype=torch.float32)), persistent=False
        )

    def forward(self, t: Tensor) -> Tensor:
        """t: [B], integer or float timesteps. Returns [B, D] float32: ``[sin | cos]``."""
        angle = t.to(torch.float32)[:, None] * self.inv_freq[None, :]
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)


class ConditionEmbedding(nn.Module):
    """Timestep and label to one vector: MLP(sinusoid(t)) + table[label], then SiLU.

    The table has one row more than there are classes: the last, "null", stands for "no label" and
    is learned by label dropout (Ho and Salimans 2022, classifier-free guidance).

    Args:
        num_labels: number of classes, without null.
        sinusoidal_width: D of the sinusoidal embedding.
        width: features that are learned.
        output_scales: float32 [T, 2], two more features per timestep, handed through as they are:
            how x_t and the last convolution make up eps (UNet). E is ``width``, plus 2 with them.
    """

    output_scales: Tensor

    def __init__(
        self,
        num_labels: int,
        sinusoidal_width: int,
        width: int,
        output_scales: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.sinusoidal = SinusoidalPositionEmbedding(sinusoidal_width)
        self.mlp = nn.Sequential(
            nn.Linear(sinusoidal_width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.label = nn.Embedding(num_labels + 1, width)
        self.activation = nn.SiLU()
        self.has_output_scales = output_scales is not None
        if output_scales is not None:
            # Recomputed from the schedule, like the sinusoid's frequencies: never in a checkpoint.
            self.register_buffer("output_scales", output_scales, persistent=False)

    def forward(self, t: Tensor, label: Tensor) -> Tensor:
        """t, label: [B] int64, label in 0..num_labels. Returns emb: [B, E]."""
        emb = self.activation(self.mlp(self.sinusoidal(t)) + self.label(label))
        if self.has_output_scales:
            emb = torch.cat([emb, self.output_scales[t]], dim=1)
        return emb
