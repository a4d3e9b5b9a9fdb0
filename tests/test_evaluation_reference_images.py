"""evaluation.reference_images: floors are real images, ceilings have the statistics they claim."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.reference_images import class_gaussians, disjoint_subsets, uniform_noise
from training.datasets import Split, load_dataset

SAMPLE = Path(__file__).parent / "data" / "mnist-sample"


@pytest.fixture(scope="module")
def train() -> Split:
    return load_dataset("mnist", SAMPLE, verify=False).train


def test_subsets_are_real_images_with_their_labels_and_share_none() -> None:
    numbered = np.arange(100, dtype=np.uint8)
    split = Split(np.repeat(numbered, 4).reshape(100, 2, 2), numbered // 10)
    subsets = disjoint_subsets(split, (30, 50), seed=0)
    assert [images.shape for images, _ in subsets] == [(30, 1, 2, 2), (50, 1, 2, 2)]
    taken = np.concatenate([images[:, 0, 0, 0] for images, _ in subsets])
    assert len(np.unique(taken)) == 80
    for images, labels in subsets:
        assert np.array_equal(images[:, 0, 0, 0] // 10, labels)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64


def test_a_subset_of_everything_is_everything(train: Split) -> None:
    [(images, _)] = disjoint_subsets(train, (500,), seed=3)
    assert np.array_equal(np.sort(images.sum(axis=(1, 2, 3))), np.sort(train.images.sum((1, 2))))


def test_draws_repeat_with_the_seed_and_differ_without(train: Split) -> None:
    labels = np.arange(10)
    for draw in (
        lambda seed: disjoint_subsets(train, (20,), seed)[0][0],
        lambda seed: uniform_noise(20, (28, 28), seed),
        lambda seed: class_gaussians(train, labels, seed),
    ):
        assert np.array_equal(draw(1), draw(1))
        assert not np.array_equal(draw(1), draw(2))


def test_noise_uses_every_grey_level_alike() -> None:
    noise = uniform_noise(400, (28, 28), seed=0)
    assert noise.shape == (400, 1, 28, 28)
    assert noise.dtype == np.uint8
    counts = np.bincount(noise.ravel(), minlength=256)
    assert counts == pytest.approx(np.full(256, noise.size / 256), rel=0.15)


def test_gaussians_have_each_class_mean_and_covariance() -> None:
    random = np.random.default_rng(0)
    mix = random.normal(size=(2, 9, 9)) * 4
    fitted = [
        random.normal(size=(200, 9)) @ m + mean for m, mean in zip(mix, (100, 140), strict=True)
    ]
    images = np.rint(np.concatenate(fitted)).astype(np.uint8).reshape(-1, 3, 3)
    split = Split(images, np.repeat(np.array([0, 1], np.uint8), 200))
    labels = random.permutation(np.repeat([0, 1], 10_000))
    drawn = class_gaussians(split, labels, seed=0)
    assert drawn.shape == (20_000, 1, 3, 3)
    assert drawn.dtype == np.uint8
    for label in (0, 1):
        real = split.images[split.labels == label].reshape(-1, 9).astype(float)
        got = drawn[labels == label].reshape(-1, 9).astype(float)
        assert got.mean(axis=0) == pytest.approx(real.mean(axis=0), abs=0.5)
        scale = np.cov(real.T).diagonal().max()
        assert np.cov(got.T) == pytest.approx(np.cov(real.T), abs=0.04 * scale)


def test_gaussians_of_digits_are_blurred_digits_of_the_label_asked_for(train: Split) -> None:
    drawn = class_gaussians(train, np.repeat(np.arange(10), 50), seed=0).reshape(10, 50, 784)
    means = np.stack([train.images[train.labels == y].mean(axis=0).ravel() for y in range(10)])
    distances = np.linalg.norm(drawn.mean(axis=1)[:, None] - means, axis=2)
    assert distances.argmin(axis=1).tolist() == list(range(10))


def test_what_cannot_be_drawn_is_refused(train: Split) -> None:
    one_of_each = Split(np.zeros((3, 2, 2), np.uint8), np.array([0, 1, 1], np.uint8))
    for call, message in (
        (lambda: disjoint_subsets(train, (300, 201), 0), "sum of sizes is 501; legal: at most 500"),
        (lambda: disjoint_subsets(train, (0,), 0), "size is 0; legal: at least 1"),
        (lambda: disjoint_subsets(train, (1,), -1), "seed is -1; legal: at least 0"),
        (lambda: uniform_noise(0, (28, 28), 0), "num_images is 0; legal: at least 1"),
        (lambda: class_gaussians(train, np.array([], int), 0), "number of labels is 0"),
        (lambda: class_gaussians(train, np.array([10]), 0), "images of label 10 is 0; legal: at l"),
        (lambda: class_gaussians(one_of_each, np.array([0]), 0), "images of label 0 is 1; legal"),
        (lambda: class_gaussians(train, np.array([0.5]), 0), "labels is float64"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
