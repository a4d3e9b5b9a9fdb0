"""Which images each train step sees, and at which learning rate."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_training import tiny_config
from training.batches import batch_indices, learning_rate_factor, total_train_steps


def test_each_epoch_sees_every_image_once_in_its_own_order() -> None:
    config = tiny_config(Path("run"), batch_size=8)
    stream = np.concatenate([batch_indices(config, step, 20) for step in range(1, 11)])
    epochs = stream.reshape(4, 20)  # the second batch of 8 ends the first epoch in its middle
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = batch_indices(dataclasses.replace(config, seed=1), 1, 20)
    assert not np.array_equal(other, stream[:8])


def test_a_batch_may_be_larger_than_the_data() -> None:
    indices = batch_indices(tiny_config(Path("run"), batch_size=50), 1, 20)
    assert set(np.bincount(indices).tolist()) == {2, 3}


@pytest.mark.parametrize(("epochs", "expected"), [(2.0, 125), (0.16, 10), (1e-6, 1)])
def test_epochs_become_train_steps(epochs: float, expected: int) -> None:
    assert total_train_steps(tiny_config(Path("run"), epochs=epochs), 500) == expected


def test_the_learning_rate_warms_up_linearly_and_decays_as_a_cosine_to_zero() -> None:
    config = tiny_config(Path("run"), warmup_fraction=0.1)
    factors = [learning_rate_factor(config, step, 100) for step in range(1, 101)]
    assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    expected = [0.5 * (1 + math.cos(math.pi * i / 90)) for i in range(91)]
    assert factors[9:] == pytest.approx(expected)
