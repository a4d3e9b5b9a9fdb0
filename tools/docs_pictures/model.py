"""The embedded model, as the pictures ask it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion.plan import Float32Array, Int64Array, Plan
from diffusion.reference import sample, to_uint8
from diffusion.samplers import make_plan
from evaluation.sampling import ImageSource

MODEL = Path("models", "mnist")


class Model:
    """models/mnist on the CPU, where it draws the same bits every time."""

    def __init__(self, path: Path = MODEL) -> None:
        self.source = ImageSource(path, "cpu")
        self.schedule = self.source.model.schedule
        self.image_shape = self.source.manifest.image_shape
        self.null_label = self.source.manifest.null_label

    def eps(self, x_t: Float32Array, t: Int64Array, label: Int64Array) -> Float32Array:
        """The network: which noise it sees in x_t."""
        rows = np.ascontiguousarray(self.source.model.embedding_table[t, label])
        return self.source.network(np.ascontiguousarray(x_t), rows)

    def plan(self, sampler: str, num_steps: int) -> Plan:
        """A sampler, laid out for the model's schedule."""
        return make_plan(sampler, self.schedule, num_steps)

    def images(
        self, labels: list[int], seed: int, sampler: str, num_steps: int, guidance_scale: float
    ) -> NDArray[np.uint8]:
        """One image per label, all from the same noise: uint8 [N, H, W]."""
        return np.concatenate([
            to_uint8(
                sample(
                    self.eps, self.plan(sampler, num_steps), [label], seed, self.image_shape,
                    self.null_label, guidance_scale,
                )
            )[:, 0]
            for label in labels
        ])  # fmt: skip
