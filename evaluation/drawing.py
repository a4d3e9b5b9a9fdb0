"""Sets of generated images, drawn in chunks of which each is stored as soon as it is finished.

Image i of a label is a function of (label, seed, i) alone, so chunks are exact: together they are
what one draw gives, and a set of N images is the beginning of every larger one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.protocol import PROTOCOL_VERSION
from evaluation.sampling import ImageSource
from evaluation.setting import Setting
from evaluation.store import Arrays, Store
from training.config import require

_KIND = "images"
_IMAGES_AT_ONCE = 1000
_ROWS_AT_ONCE = 100_000
"""Network rows that an interruption costs at most, or those of one full batch."""
_LEAST_IMAGES_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Drawn:
    """Generated images.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], what they were asked to be.
        indexes: int64 [N]: image i is Generate(label=labels[i], first_index=indexes[i]).
        seconds: that drawing took, whenever that was.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indexes: NDArray[np.int64]
    seconds: float


def label_order(
    labels: NDArray[np.integer], num_images: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which images to draw so that each label has the share that it has in ``labels``.

    The first n of them have these shares for every n: seats handed out by Webster's method. The
    counts of len(labels) images are exactly those of ``labels``.

    Args:
        labels: int [M], 0 or more: the real images'.
        num_images: N, at least 1.

    Returns:
        labels int64 [N], and each image's index among those of its label, int64 [N].

    Raises:
        ValueError: num_images is out of range.
    """
    require(num_images >= 1, "num_images", num_images, "at least 1")
    shares = np.bincount(labels) / len(labels)
    # No label can have more than its share and one.
    most = np.where(shares > 0, np.ceil(shares * num_images) + 1, 0).astype(np.int64)
    of_label = np.repeat(np.arange(len(shares)), most)
    index = np.concatenate([np.arange(count) for count in most])
    turn = (index + 0.5) / shares[of_label]
    order = np.lexsort((of_label, turn))[:num_images]
    return of_label[order], index[order]


def draw(
    source: ImageSource,
    store: Store,
    setting: Setting,
    seed: int,
    real_labels: NDArray[np.integer],
    num_images: int,
) -> Drawn:
    """``num_images`` images with the labels' shares in ``real_labels``, in label_order.

    Args:
        source: the bundle.
        store: keeps the chunks, and gives those that are already there.
        setting: how to draw.
        seed: label y is drawn with seed + y.
        real_labels: int [M], as of ``label_order``.
        num_images: N, at least 1.

    Raises:
        RuntimeError: the network failed.
        ValueError: a value is out of range.
    """
    identity = source.identity(setting)
    labels, indexes = label_order(real_labels, num_images)
    chunk = _chunk_size(setting)
    parts = []
    description = f"{setting} seed {seed}"
    rows = setting.rows_per_image
    bar = tqdm(total=num_images * rows, desc=description, unit="row", unit_scale=True, disable=None)
    with bar:
        for start in range(0, num_images, chunk):
            part = slice(start, start + chunk)
            key = {
                "protocol_version": PROTOCOL_VERSION,
                "model": identity,
                "seed": seed,
                "images": _ranges(labels[part], indexes[part]),
            }

            def compute(part: slice = part) -> Arrays:
                return _draw_chunk(source, setting, seed, labels[part], indexes[part], bar.update)

            found = store.arrays(_KIND, key, compute)
            parts.append(found)
            bar.n = min(start + chunk, num_images) * rows  # whether drawn or found
            bar.refresh()
    images = np.concatenate([part["images"] for part in parts])
    seconds = float(sum(part["seconds"] for part in parts))
    return Drawn(images, labels, indexes, seconds)


def _chunk_size(setting: Setting) -> int:
    affordable = _ROWS_AT_ONCE // setting.rows_per_image
    return min(_IMAGES_AT_ONCE, max(affordable, _LEAST_IMAGES_AT_ONCE))


def _ranges(labels: NDArray[np.int64], indexes: NDArray[np.int64]) -> dict[str, list[int]]:
    """Label -> first index and count; within a label, indexes follow each other."""
    return {
        str(label): [int(indexes[labels == label][0]), int(np.count_nonzero(labels == label))]
        for label in np.unique(labels)
    }


def _draw_chunk(
    source: ImageSource,
    setting: Setting,
    seed: int,
    labels: NDArray[np.int64],
    indexes: NDArray[np.int64],
    on_rows: Callable[[int], None],
) -> Arrays:
    counts = np.bincount(labels)
    first_indexes = np.zeros_like(counts)
    # Backwards, so that the first one of each label is what stays.
    first_indexes[labels[::-1]] = indexes[::-1]
    begin = time.perf_counter()
    drawn, _ = source.draw(
        counts,
        seed,
        setting.sampler,
        setting.num_steps,
        setting.guidance_scale,
        first_indexes,
        on_rows,
    )
    seconds = time.perf_counter() - begin
    images = np.empty_like(drawn)
    images[np.argsort(labels, kind="stable")] = drawn  # drawn is sorted by label
    return {"images": images, "seconds": np.array(seconds)}
