"""What the engine needs to know of a model: its network, and the numbers around it."""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from diffusion.schedule import Schedule
from serving.bundle import Manifest
from serving.lanes import Float32Array


class Network(Protocol):
    """The noise predictor."""

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        """x_t float32 [B, C, H, W], emb float32 [B, E] -> eps float32 [B, C, H, W].

        The result is not a view of the arguments, and the caller may write into it. Both arguments
        are contiguous and are overwritten after the call. May raise anything.
        """


@dataclass(frozen=True, eq=False)
class EngineModel:
    """What the engine needs to know of a model besides its network.

    Args:
        image_shape: (C, H, W).
        null_label: the label that means "no label"; labels are 0 .. null_label.
        schedule: the noise levels that the network was trained on.
        embedding_table: float32 [T, null_label + 1, E], the embedding of every (t, label).
        clip: bound of |x_0| at every step; None for none.

    Raises:
        ValueError: if the table does not fit the schedule and the labels.
    """

    image_shape: tuple[int, int, int]
    null_label: int
    schedule: Schedule
    embedding_table: Float32Array
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        expected = (self.schedule.num_train_timesteps, self.null_label + 1)
        table = self.embedding_table
        if table.ndim != 3 or table.shape[:2] != expected or table.dtype != np.float32:
            raise ValueError(
                f"embedding_table must be float32 [{expected[0]}, {expected[1]}, E], "
                f"got {table.dtype} {list(table.shape)}"
            )

    @classmethod
    def from_manifest(cls, manifest: Manifest, embedding_table: Float32Array) -> Self:
        """The model of a bundle, with the table that its embedding.onnx gave."""
        return cls(
            image_shape=manifest.image_shape,
            null_label=manifest.null_label,
            schedule=manifest.schedule.to_schedule(),
            embedding_table=embedding_table,
        )


def workers_of(network: Network) -> tuple[Network, ...]:
    """Those who compute for a network: each may be called while the others are, not the network.

    A network that has no `workers` is the only one.
    """
    workers: tuple[Network, ...] = getattr(network, "workers", (network,))
    return workers
