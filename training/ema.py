"""Power-function exponential moving average of the weights (Karras et al. 2024, "EDM2", section 3).

Its width is a share of the run so far, so the first, bad weights leave it early in a short run too.
"""

import numpy as np
import torch
from torch import nn


def gamma_of_relative_width(relative_width: float) -> float:
    """The exponent gamma whose averaging profile has this standard deviation relative to the run.

    Solves sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), EDM2 Eq. 126.
    """
    inverse = relative_width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerEma:
    """theta_ema <- beta theta_ema + (1 - beta) theta, beta = (1 - 1/n)^(gamma + 1) (EDM2 Eq. 127).

    Args:
        model: its parameters and buffers are copied as the start.
        relative_width: sigma_rel, above 0 and below 0.28.
    """

    def __init__(self, model: nn.Module, relative_width: float) -> None:
        self.gamma = gamma_of_relative_width(relative_width)
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, train_step: int) -> None:
        """Take in the weights after train step number ``train_step`` (1 = the first)."""
        weight = 1.0 - (1.0 - 1.0 / train_step) ** (self.gamma + 1.0)
        current = model.state_dict()
        torch._foreach_lerp_(
            list(self.state.values()), [current[name] for name in self.state], weight
        )
