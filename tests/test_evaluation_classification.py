"""evaluation.classification: the score is high for real digits, low for wrong ones, and repeats."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.classification import MAX_SHIFT, _shifted, classification_accuracy_score
from training.datasets import Dataset, load_dataset

SAMPLE = Path(__file__).parent / "data" / "mnist-sample"


@pytest.fixture(scope="module")
def real() -> Dataset:
    return load_dataset("mnist", SAMPLE, verify=False)


def score(real: Dataset, labels: np.ndarray, epochs: int, seed: int = 0) -> float:
    return classification_accuracy_score(
        real.train.images[:, None],
        labels,
        real.test.images[:, None],
        real.test.labels,
        seed=seed,
        epochs=epochs,
        progress=False,
    )


def test_a_few_real_digits_teach_reading_and_mislabelled_ones_do_not(real: Dataset) -> None:
    labels = real.train.labels
    taught = score(real, labels, epochs=12)
    assert taught > 0.8
    half_wrong = labels.copy()
    half_wrong[::2] = (half_wrong[::2] + 1 + np.arange(250) % 9) % 10
    assert score(real, half_wrong, epochs=12) < taught - 0.05


def test_the_same_seed_gives_the_same_score_and_leaves_the_global_state_alone(
    real: Dataset,
) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = score(real, real.train.labels, epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert score(real, real.train.labels, epochs=2) == first
    assert score(real, real.train.labels, epochs=2, seed=1) != first


def test_every_image_is_shifted_by_its_own_amount() -> None:
    torch.manual_seed(0)
    size = 8
    padded = torch.zeros(500, 1, size + 2 * MAX_SHIFT, size + 2 * MAX_SHIFT, dtype=torch.uint8)
    padded[:, :, MAX_SHIFT + 3, MAX_SHIFT + 4] = 255
    shifted = _shifted(padded)
    assert shifted.shape == (500, 1, size, size)
    assert (shifted.sum(dim=(1, 2, 3)) == 255).all()
    moves = {(int(y) - 3, int(x) - 4) for _, _, y, x in shifted.nonzero()}
    reach = range(-MAX_SHIFT, MAX_SHIFT + 1)
    assert moves == {(y, x) for y in reach for x in reach}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((127, 1, 28, 28), np.uint8)}, "number of images is 127; legal: at le"),
        ({"images": np.zeros((128, 28, 28), np.uint8)}, r"legal: uint8 \[N, 1, 28, 28\]"),
        ({"labels": np.zeros(127, int)}, r"labels is int64 \[127\]; legal: integers \[128\]"),
        ({"labels": np.full(128, -1)}, "labels is -1; legal: at least 0"),
        ({"test_images": np.zeros((0, 1, 28, 28), np.uint8)}, "number of test_images is 0; legal"),
        ({"test_labels": np.zeros(3)}, r"test_labels is float64 \[3\]; legal: integers \[2\]"),
        ({"seed": -1}, "seed is -1; legal: 0"),
        ({"epochs": 0}, "epochs is 0; legal: at least 1"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(change: dict, message: str) -> None:
    arguments = {
        "images": np.zeros((128, 1, 28, 28), np.uint8),
        "labels": np.zeros(128, int),
        "test_images": np.zeros((2, 1, 28, 28), np.uint8),
        "test_labels": np.zeros(2, int),
        "seed": 0,
    }
    with pytest.raises(ValueError, match=message):
        classification_accuracy_score(**arguments | change)
