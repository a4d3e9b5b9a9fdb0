"""The U-Net that predicts eps from x_t and the condition embedding.

Three resolutions (28 -> 14 -> 7 for MNIST). Residual blocks are GroupNorm-SiLU-conv3 twice with
FiLM (scale and shift from the embedding) before the second convolution, which starts at zero so
that every block starts as the identity (Dhariwal and Nichol 2021, appendix). Self-attention at the
lowest resolution only, where it is cheap.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import ModelConfig

Module = TypeVar("Module", bound=nn.Module)


def zero_initialised(module: Module) -> Module:
    """Set every parameter of ``module`` to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """[B, in_channels, H, W], emb [B, E] -> [B, out_channels, H, W]."""

    def __init__(
        self, in_channels: int, out_channels: int, embedding_width: int, groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.film = nn.Linear(embedding_width, 2 * out_channels)
        self.norm_out = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zero_initialised(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [B, in_channels, H, W]; emb: [B, E]. Returns [B, out_channels, H, W]."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.film(emb).chunk(2, dim=1)
        # FiLM, Perez et al. 2018
        h = self.norm_out(h) * (1 + scale)[:, :, None, None] + shift[:, :, None, None]
        return self.skip(x) + self.conv_out(self.dropout(F.silu(h)))


class Stage(nn.ModuleList):
    """The residual blocks of one resolution, in order."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [B, C, H, W]; emb: [B, E]. Returns [B, C', H, W]."""
        for block in self:
            x = block(x, emb)
        return x


class SelfAttention(nn.Module):
    """Multi-head self-attention over the H*W positions, with a residual connection."""

    def __init__(self, channels: int, head_width: int, groups: int) -> None:
        super().__init__()
        self.num_heads = channels // head_width
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = zero_initialised(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]. Returns the same shape."""
        _, c, h, w = x.shape
        # [B, 3*C, H, W] -> three of [B, heads, H*W, C/heads]
        qkv = self.qkv(self.norm(x)).reshape(-1, 3, self.num_heads, c // self.num_heads, h * w)
        q, k, v = qkv.transpose(3, 4).unbind(dim=1)
        out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(-1, c, h, w)
        return x + self.projection(out)


class UNet(nn.Module):
    """eps = UNet(x_t, emb).

    Args:
        config: widths, blocks per resolution, attention, image channels, embedding width.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        emb, groups, dropout = config.embedding_width, config.groups, config.dropout
        self.embedding_width, self.patch_size = config.embedding_width, config.patch_size
        self.predicts_eps = config.prediction == "eps"
        pixels = config.image_channels * config.patch_size**2

        def block(in_channels: int, out_channels: int) -> ResidualBlock:
            return ResidualBlock(in_channels, out_channels, emb, groups, dropout)

        widths, depth = config.widths, config.blocks_per_resolution
        self.conv_in = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()  # one Stage per resolution, finest first
        self.downsample = nn.ModuleList()  # between resolutions: strided convolution
        self.upsample = nn.ModuleList()  # between resolutions: 1x1 convolution, then nearest
        self.up = nn.ModuleList()
        for i, width in enumerate(widths[:-1]):
            self.down.append(Stage(block(width, width) for _ in range(depth)))
            self.downsample.append(nn.Conv2d(width, widths[i + 1], 3, stride=2, padding=1))
            self.upsample.append(nn.Conv2d(widths[i + 1], width, 1))
            # The first block of the way up sees the skip beside the upsampled features.
            self.up.append(
                Stage(block(2 * width if j == 0 else width, width) for j in range(depth))
            )
        self.middle = nn.ModuleList(
            block(widths[-1], widths[-1]) for _ in range(config.middle_blocks)
        )
        self.attention = (
            SelfAttention(widths[-1], config.attention_head_width, groups)
            if config.attention
            else None
        )
        self.norm_out = nn.GroupNorm(groups, widths[0])
        self.conv_out = zero_initialised(nn.Conv2d(widths[0], pixels, 3, padding=1))

    def forward(self, x_t: Tensor, emb: Tensor) -> Tensor:
        """x_t: [B, C, H, W]; emb: [B, E]. Returns eps: [B, C, H, W].

        H and W are multiples of patch_size * 2^(number of resolutions - 1).
        """
        output_scales = emb[:, self.embedding_width :, None, None, None]
        emb = emb[:, : self.embedding_width]
        h = self.conv_in(F.pixel_unshuffle(x_t, self.patch_size) if self.patch_size > 1 else x_t)
        skips: list[Tensor] = []
        for stage, downsample in zip(self.down, self.downsample, strict=True):
            h = stage(h, emb)
            skips.append(h)
            h = downsample(h)
        for i, block in enumerate(self.middle):
            h = block(h, emb)
            if i == 0 and self.attention is not None:
                h = self.attention(h)
        for i in reversed(range(len(self.up))):
            # 1x1 before the upsampling: a quarter of the multiply-adds of the other order.
            h = F.interpolate(self.upsample[i](h), scale_factor=2.0, mode="nearest")
            h = self.up[i](torch.cat([h, skips[i]], dim=1), emb)
        h = self.conv_out(F.silu(self.norm_out(h)))
        if self.patch_size > 1:
            h = F.pixel_shuffle(h, self.patch_size)
        if self.predicts_eps:
            return h
        return output_scales[:, 0] * x_t + output_scales[:, 1] * h
