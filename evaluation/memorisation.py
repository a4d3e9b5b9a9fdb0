"""Memorisation: do samples lie closer to training images than real test images do?

Distances are Euclidean, in pixel space, to the nearest training image, and are read against the
same distances of real test images, which were not learned from (Meehan et al. 2020, "A
Non-Parametric Test to Detect Data-Copying in Generative Models", arXiv:2004.05675, has the idea).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.checks import check_images
from training.config import require

FLOOR_SHARE = 0.01
"""``share_below_first_percentile`` of images that are as far from the training set as real ones."""

MAX_PIXELS = 1024
"""Numbers in an image: up to here 32-bit floats hold every dot product exactly."""

_QUERIES_AT_ONCE, _TRAIN_AT_ONCE = 1000, 5000
"""A block of dot products takes 40 MB: 20 as float, 20 as integer."""


@dataclass(frozen=True, eq=False)
class Memorisation:
    """How close samples come to training images. A distance of 1 is one pixel, black to white.

    Attributes:
        median_ratio: of the median distances, generated over test. About 1 for samples that are as
            new as test images; 0 for copies.
        share_below_first_percentile: share of samples nearer to the training set than
            ``first_percentile``; FLOOR_SHARE for samples as new as test images.
        generated_median: median distance of a sample.
        test_median: median distance of a test image.
        first_percentile: 1 % of the test images are nearer to the training set than this.
        copies: samples that equal a training image to the bit.
        closest: int64 [P], the samples nearest to the training set, nearest first.
        closest_rows: int64 [P], the training images that they are nearest to.
        closest_distances: float32 [P], from one to the other.
    """

    median_ratio: float
    share_below_first_percentile: float
    generated_median: float
    test_median: float
    first_percentile: float
    copies: int
    closest: NDArray[np.int64]
    closest_rows: NDArray[np.int64]
    closest_distances: NDArray[np.float32]


def memorisation(
    generated: NDArray[np.uint8],
    test: NDArray[np.uint8],
    train: NDArray[np.uint8],
    *,
    num_pairs: int = 20,
    progress: bool = True,
) -> Memorisation:
    """Compares the distances of samples to the training set with those of test images.

    Args:
        generated: uint8 [N, C, H, W] samples, with the shares of labels that ``test`` has: images
            of some labels lie closer together than those of others.
        test: uint8 [M, C, H, W], real images that were not trained on.
        train: uint8 [L, C, H, W], those that were.
        num_pairs: P, the closest pairs to return, for a gallery; 0 or more, N at most are returned.
        progress: whether to show a bar.

    Raises:
        ValueError: shapes are not as above, there are no images, or C H W is above MAX_PIXELS;
            or half of the test images are copies of training images, which leaves no ratio.
    """
    require(num_pairs >= 0, "num_pairs", num_pairs, "at least 0")
    _check(generated, "generated", train)
    _check(test, "test", train)
    distances, rows = nearest(generated, train, progress=progress)
    test_distances, _ = nearest(test, train, progress=progress)
    median, test_median = float(np.median(distances)), float(np.median(test_distances))
    require(test_median > 0, "median distance of test", test_median, "above 0")
    first_percentile = float(np.quantile(test_distances, FLOOR_SHARE))
    closest = np.argsort(distances, kind="stable")[:num_pairs]
    return Memorisation(
        median_ratio=median / test_median,
        share_below_first_percentile=float(np.mean(distances < first_percentile)),
        generated_median=median,
        test_median=test_median,
        first_percentile=first_percentile,
        copies=int(np.count_nonzero(distances == 0)),
        closest=closest,
        closest_rows=rows[closest],
        closest_distances=distances[closest],
    )


def nearest(
    images: NDArray[np.uint8], train: NDArray[np.uint8], *, progress: bool = True
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The training image nearest to each image, the first one of several equally near.

    Exact: pixels less 128 are integers whose dot products 32-bit floats hold without rounding, so
    that the fast matrix product serves; the rest is integer arithmetic.

    Args:
        images: uint8 [N, C, H, W], with C H W at most MAX_PIXELS.
        train: uint8 [L, C, H, W].
        progress: whether to show a bar.

    Returns:
        distances float32 [N], Euclidean, with 1 the distance of black and white at one pixel; and
        rows int64 [N] of ``train``.

    Raises:
        ValueError: shapes are not as above, or there are no images.
    """
    _check(images, "images", train)
    queries, references = _centred(images), _centred(train)
    best = np.full(len(queries), np.iinfo(np.int32).max, np.int32)
    rows = np.zeros(len(queries), np.int64)
    bar = tqdm(
        total=len(queries) * len(references), desc="nearest", unit="pair", unit_scale=True,
        disable=None if progress else True,
    )  # fmt: skip
    with bar:
        for first in range(0, len(references), _TRAIN_AT_ONCE):
            block = references[first : first + _TRAIN_AT_ONCE].astype(np.float32)
            norms = np.einsum("np,np->n", block, block).astype(np.int32)
            for start in range(0, len(queries), _QUERIES_AT_ONCE):
                part = slice(start, start + _QUERIES_AT_ONCE)
                # |y|^2 - 2 x.y, which orders the rows like |x - y|^2; at most 3 * 2^24.
                score = (queries[part].astype(np.float32) @ block.T).astype(np.int32)
                score *= -2
                score += norms
                at = score.argmin(axis=1)
                found = score[np.arange(len(at)), at]
                better = found < best[part]
                best[part][better] = found[better]
                rows[part][better] = first + at[better]
                bar.update(len(at) * len(block))
    squares = best + np.einsum("np,np->n", queries, queries, dtype=np.int32)
    return (np.sqrt(squares.astype(np.float64)) / 255).astype(np.float32), rows


def _centred(images: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Pixels in -128 .. 127, int16 [N, C H W]."""
    return images.reshape(len(images), -1).astype(np.int16) - np.int16(128)


def _check(images: NDArray[np.uint8], name: str, train: NDArray[np.uint8]) -> None:
    shape = train.shape[1:]
    require(len(shape) == 3, "train", f"of shape {list(train.shape)}", "[L, C, H, W]")
    check_images("train", train, shape)
    pixels = int(np.prod(shape))
    require(1 <= pixels <= MAX_PIXELS, "pixels of train", pixels, f"1 .. {MAX_PIXELS}")
    check_images(name, images, shape)
