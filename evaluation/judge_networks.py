"""The judges' networks: four CNNs of different shapes for grey images of 28 x 28.

All of them map image, float32 [B, 1, 28, 28] in [-1, 1], to (logits [B, 10], features [B, D]); the
features are what the last linear layer reads. They differ in what decides an answer (kernel size,
depth, skips, normalisation, pooling), so that an image that misleads one need not mislead the rest.
"""

from torch import Tensor, nn
from torch.nn import functional


class JudgeNetwork(nn.Module):
    """``body`` makes features, ``head`` makes logits of them."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: [B, 1, 28, 28] in [-1, 1]. Returns logits [B, 10] and features [B, D]."""
        features = self.body(image)
        return self.head(features), features


class LeNet(JudgeNetwork):
    """LeNet-5's geometry (LeCun et al. 1998, section II.B), wider: 28 -> 24 -> 12 -> 8 -> 4 -> 128.

    Its features keep where a stroke is, as no global pooling comes before them, and are not
    normalised: right for distances. Dropout (Srivastava et al. 2014) is its regularisation.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Dropout(0.4), nn.Linear(64 * 4 * 4, 128), nn.ReLU(),
            ),
            nn.Sequential(nn.Dropout(0.4), nn.Linear(128, 10)),
        )  # fmt: skip


class StridedCnn(JudgeNetwork):
    """3x3 convolutions and nothing else (Springenberg et al. 2014), with batch normalisation."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for in_channels, out_channels in ((1, 16), (16, 32), (32, 64)):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels), nn.ReLU(),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, stride=2, bias=False),
                nn.BatchNorm2d(out_channels), nn.ReLU(),
            ]  # fmt: skip
        body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(body, nn.Linear(64, 10))


class PreActivationBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), the skip a 1x1 convolution where shapes differ."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.skip = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, in_channels, H, W]. Returns [B, out_channels, H / stride, W / stride]."""
        activated = functional.relu(self.norm1(x))
        skip = x if self.skip is None else self.skip(activated)
        hidden = functional.relu(self.norm2(self.conv1(activated)))
        residual: Tensor = self.conv2(hidden)
        return skip + residual


class PreActivationResNet(JudgeNetwork):
    """Residual network with activations before convolutions (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self) -> None:
        body = nn.Sequential(
            nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False),
            PreActivationBlock(24, 24, stride=1),
            PreActivationBlock(24, 48, stride=2),
            PreActivationBlock(48, 48, stride=1),
            nn.BatchNorm2d(48), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        super().__init__(body, nn.Linear(48, 10))


class LargeKernelCnn(JudgeNetwork):
    """7x7 and 5x5 kernels, and a head that reads every position (after An et al. 2020).

    arXiv:2008.10400 has networks of this kind, of 3x3, 5x5 and 7x7 kernels, vote over MNIST.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for in_channels, out_channels, kernel, stride in (
            (1, 24, 7, 2), (24, 32, 5, 2), (32, 48, 5, 1), (48, 24, 3, 1),
        ):  # fmt: skip
            layers += [
                nn.Conv2d(
                    in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False
                ),
                nn.BatchNorm2d(out_channels), nn.ReLU(),
            ]  # fmt: skip
        body = nn.Sequential(*layers, nn.Flatten())
        super().__init__(body, nn.Linear(24 * 7 * 7, 10))
