"""How long a run is, which images each train step sees, and at which learning rate."""

import functools
import math

import numpy as np
from numpy.typing import NDArray

from training.config import TrainConfig


def total_train_steps(config: TrainConfig, num_images: int) -> int:
    """Length of the whole run, at least 1."""
    return max(1, round(config.epochs * num_images / config.batch_size))


def learning_rate_factor(config: TrainConfig, step: int, total: int) -> float:
    """Share of the peak learning rate at step 1..total: linear warm-up, then cosine to zero."""
    warmup = max(1, round(config.warmup_fraction * total))
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@functools.lru_cache(maxsize=2)  # a batch may lie across two epochs
def epoch_order(seed: int, epoch: int, num_images: int) -> NDArray[np.int64]:
    """The permutation of the training set in one epoch: int64 [num_images]."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def batch_indices(config: TrainConfig, step: int, num_images: int) -> NDArray[np.int64]:
    """Rows of the training set in the global batch of step 1..total: int64 [batch_size].

    The order is an endless stream of permutations, one per epoch, each a function of (seed, epoch).
    """
    position = (step - 1) * config.batch_size + np.arange(config.batch_size)
    epochs = position // num_images
    indices = np.empty(config.batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = epoch_order(config.seed, int(epoch), num_images)
        indices[epochs == epoch] = order[position[epochs == epoch] % num_images]
    return indices
