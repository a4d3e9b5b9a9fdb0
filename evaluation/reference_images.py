"""Images whose scores say what a score means: floors from real images, ceilings from crude models.

A floor is what real images that were not trained on score, at the same N. A ceiling is what a model
scores that knows next to nothing; a good model is far from it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.checks import check_labels
from training.config import require
from training.datasets import Split

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 [N, 1, H, W] and their labels int64 [N], as ImageSource.draw gives them."""


def disjoint_subsets(split: Split, sizes: Sequence[int], seed: int) -> list[Labelled]:
    """Floors: real images, drawn at random without replacement; no image is in two subsets.

    Subsets of the training set against each other, or against what is left of it; a single subset
    of the test set against the training set.

    Args:
        split: real images.
        sizes: N of each subset, each at least 1, their sum at most the split's.
        seed: of the draw, at least 0.

    Raises:
        ValueError: a size or the seed is out of range.
    """
    total = len(split.images)
    _require_seed(seed)
    for size in sizes:
        require(size >= 1, "size", size, "at least 1")
    require(sum(sizes) <= total, "sum of sizes", sum(sizes), f"at most {total}")
    order = np.random.default_rng(seed).permutation(total)
    parts = np.split(order, np.cumsum(sizes))[: len(sizes)]
    return [(split.images[rows, None], split.labels[rows].astype(np.int64)) for rows in parts]


def uniform_noise(num_images: int, image_size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Ceiling: every pixel 0 .. 255, alike and alone.

    Args:
        num_images: N, at least 1.
        image_size: (H, W).
        seed: at least 0.

    Returns:
        uint8 [N, 1, H, W].

    Raises:
        ValueError: num_images or seed is out of range.
    """
    require(num_images >= 1, "num_images", num_images, "at least 1")
    _require_seed(seed)
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (num_images, 1, *image_size), dtype=np.uint8)


def class_gaussians(split: Split, labels: NDArray[np.integer], seed: int) -> NDArray[np.uint8]:
    """Ceiling: one Gaussian per class, fitted to pixels, clipped and rounded.

    It has each class's mean image and how pixels vary together, and no other structure.

    Args:
        split: what to fit; each class that is asked for has two images at least.
        labels: int [N], of the images to draw.
        seed: at least 0.

    Returns:
        uint8 [N, 1, H, W].

    Raises:
        ValueError: labels or seed are out of range, or a class has too few images.
    """
    require(len(labels) > 0, "number of labels", len(labels), "at least 1")
    check_labels("labels", labels, len(labels))
    _require_seed(seed)
    random = np.random.default_rng(seed)
    height, width = split.images.shape[1:]
    images = np.empty((len(labels), 1, height, width), np.uint8)
    for label in np.unique(labels):
        wanted = np.flatnonzero(labels == label)
        real = split.images[split.labels == label].reshape(-1, height * width)
        require(len(real) >= 2, f"images of label {label}", len(real), "at least 2")
        mean = real.mean(axis=0)
        # With X the centred images in rows, X^T z / sqrt(n - 1) has covariance X^T X / (n - 1) for
        # z standard normal: the fitted Gaussian, singular or not, without factoring a matrix.
        spread = (real - mean) / np.sqrt(len(real) - 1)
        drawn = mean + random.standard_normal((len(wanted), len(real))) @ spread
        pixels = np.rint(np.clip(drawn, 0, 255)).astype(np.uint8)
        images[wanted] = pixels.reshape(-1, 1, height, width)
    return images


def _require_seed(seed: int) -> None:
    require(seed >= 0, "seed", seed, "at least 0")
