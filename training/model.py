"""The trained function as one module: (x_t, t, label) -> eps."""

from torch import Tensor, nn

from training.config import ModelConfig
from training.embedding import ConditionEmbedding
from training.unet import UNet


class DiffusionModel(nn.Module):
    """The two parts that the bundle ships as two graphs, composed.

    ``embedding`` depends on (t, label) only, so the server tabulates it; ``unet`` is what each
    engine step runs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = ConditionEmbedding(
            config.num_labels, config.sinusoidal_width, config.embedding_width
        )
        self.unet = UNet(config)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x_t: [B, C, H, W] float; t: [B] int64 in 0..T-1; label: [B] int64. Returns eps as x_t."""
        return self.unet(x_t, self.embedding(t, label))
