"""The trained U-Net as runtimes are fastest at it: the same function in fewer passes over memory.

A runtime fuses the operators that it sees; that some of them could be left out it cannot know. What
is done here is exact in real numbers, and within rounding in float32: export.verification compares
the graph with the network as it was trained.

- FiLM behind a GroupNorm, (w n + b) (1 + s) + h, is n (1 + s') + h' with 1 + s' = w (1 + s) and
  h' = b (1 + s) + h. Like s and h, these are affine in the embedding, so w and b go into the
  projection that makes s and h. Likewise w and b of the attention's norm go into its projection.
- The other norms' w n + b, before a SiLU, is a batch normalisation with mean 0 and variance 1: one
  pass, where exporters write a multiplication and an addition.
- A convolution to few channels is a transposed convolution with its kernel turned by 180 degrees.
  Runtimes block convolutions by 8 or 16 output channels; of the last one they would compute 16
  and keep one.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.unet import ResidualBlock, UNet


class Standardisation(nn.Module):
    """GroupNorm without w and b: each group of channels to mean 0 and variance 1."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]. Returns the same shape."""
        _, c, h, w = x.shape
        groups = x.reshape(-1, self.num_groups, c // self.num_groups * h * w)
        return F.instance_norm(groups, eps=self.eps).reshape(-1, c, h, w)


def inference_form(unet: UNet) -> UNet:
    """A copy of the U-Net that computes the same function, and that cannot be trained.

    Parameters keep their names, but for the norms': where FiLM or attention follows there are none,
    elsewhere they are called ``NAME.1.weight`` and ``NAME.1.bias``. ``conv_out.weight`` is
    [C_in, C_out, 3, 3], turned.

    Args:
        unet: is not changed.
    """
    unet = copy.deepcopy(unet).requires_grad_(False)
    for block in unet.modules():
        if isinstance(block, ResidualBlock):
            _fold_into_film(block.norm_out, block.film)
            block.register_module("norm_out", Standardisation(block.norm_out))
            block.register_module("norm_in", _in_one_pass(block.norm_in))
    if unet.attention is not None:
        _fold_into_convolution(unet.attention.norm, unet.attention.qkv)
        unet.attention.register_module("norm", Standardisation(unet.attention.norm))
    unet.register_module("norm_out", _in_one_pass(unet.norm_out))
    unet.register_module("conv_out", _transposed(unet.conv_out))
    return unet.eval()


def _fold_into_film(norm: nn.GroupNorm, film: nn.Linear) -> None:
    """Puts w and b of the norm into the projection whose rows are those of scale, then of shift."""
    w, b = norm.weight, norm.bias
    scale, shift = film.weight.chunk(2)
    scale_bias, shift_bias = film.bias.chunk(2)
    film.weight.copy_(torch.cat([w[:, None] * scale, b[:, None] * scale + shift]))
    film.bias.copy_(torch.cat([w * (1 + scale_bias) - 1, b * (1 + scale_bias) + shift_bias]))


def _fold_into_convolution(norm: nn.GroupNorm, convolution: nn.Conv2d) -> None:
    """Puts w and b of the norm into a 1x1 convolution: no zeros are padded in between."""
    assert convolution.bias is not None
    convolution.bias.add_(convolution.weight[:, :, 0, 0] @ norm.bias)
    convolution.weight.mul_(norm.weight[:, None, None])


def _in_one_pass(norm: nn.GroupNorm) -> nn.Sequential:
    """The norm with its w n + b as a batch normalisation that normalises nothing."""
    affine = nn.BatchNorm2d(norm.num_channels, eps=0.0, dtype=norm.weight.dtype)
    affine.requires_grad_(False)
    affine.weight.copy_(norm.weight)
    affine.bias.copy_(norm.bias)
    return nn.Sequential(Standardisation(norm), affine)


def _transposed(convolution: nn.Conv2d) -> nn.ConvTranspose2d:
    """The same function as a 3x3 convolution padded by 1, summed from its inputs."""
    channels, outputs = convolution.in_channels, convolution.out_channels
    dtype = convolution.weight.dtype
    transposed = nn.ConvTranspose2d(channels, outputs, 3, padding=1, dtype=dtype)
    transposed.requires_grad_(False)
    assert convolution.bias is not None
    assert transposed.bias is not None
    transposed.weight.copy_(convolution.weight.transpose(0, 1).flip(2, 3))
    transposed.bias.copy_(convolution.bias)
    return transposed
