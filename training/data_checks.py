"""What is looked at before a run starts: do the data fit the network, and do they look sane?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.config import TrainConfig, require
from training.datasets import FILES, Dataset, DatasetError, Split

_SHOWN = 3
"""Rows that a message names, at most."""


@dataclass(frozen=True)
class DataReport:
    """What was found.

    Attributes:
        summary: one line.
        warnings: one line each; none for the canonical MNIST.
    """

    summary: str
    warnings: Sequence[str]


def require_fit(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse data that the network is not made for.

    Raises:
        DatasetError: the splits are not of one shape, or empty; names the file.
        ValueError: a field of the configuration does not fit them; names file, value and range.
    """
    model = config.model
    require(model.image_channels == 1, "image_channels", model.image_channels, "1, as IDX is grey")
    size = (model.image_size, model.image_size)
    for split, images, labels in _splits(dataset):
        _require_arrays(split, images, labels)
        shape = split.images.shape[1:]
        require(shape == size, "image_size", size, f"{shape}, that of {images}")
        row = int(split.labels.argmax())
        highest = int(split.labels[row])
        require(
            highest < model.num_labels,
            "num_labels",
            model.num_labels,
            f"at least {highest + 1}, as {labels} has label {highest} in row {row}",
        )


def look_over(dataset: Dataset, num_labels: int) -> DataReport:
    """Count images, labels, blank images, and images that are in both splits.

    Args:
        dataset: one that ``require_fit`` has passed.
        num_labels: of the network.
    """
    train, test = dataset.train, dataset.test
    counts = np.bincount(train.labels, minlength=num_labels)
    warnings = []
    if (missing := np.flatnonzero(counts == 0)).size:
        warnings.append(
            f"{FILES[1]}: no image of {_list('label', missing)}, and the network has {num_labels} "
            "labels; it will not learn to draw these"
        )
    for split, images, _ in _splits(dataset):
        if (blank := blank_rows(split.images)).size:
            warnings.append(
                f"{images}: {len(blank)} of {len(split.images)} images are blank, all pixels of "
                f"one value, as in {_list('row', blank)}"
            )
    if (both := rows_in_both(test.images, train.images)).size:
        warnings.append(
            f"{FILES[2]}: {len(both)} of {len(test.images)} test images are training images too, "
            f"as in {_list('row', both)}; what is measured on them is not held out"
        )
    height, width = train.images.shape[1:]
    least, most = counts.min(), counts.max()
    of_each = f"{least}" if least == most else f"{least} to {most}"
    summary = (
        f"{len(train.images)} training and {len(test.images)} test images, {height} x {width}; "
        f"{num_labels} labels, {of_each} training images of each"
    )
    return DataReport(summary, warnings)


def blank_rows(images: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Rows of uint8 [N, H, W] whose pixels all have one value: int64 [blank]."""
    flat = images.reshape(len(images), -1)
    return np.flatnonzero((flat == flat[:, :1]).all(axis=1))


def rows_in_both(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Rows of ``images`` that are, pixel for pixel, in ``others`` too: int64 [found]."""
    known = {image.tobytes() for image in others}
    return np.flatnonzero([image.tobytes() in known for image in images])


def _splits(dataset: Dataset) -> tuple[tuple[Split, str, str], ...]:
    """Each split with the names of its files."""
    return (dataset.train, FILES[0], FILES[1]), (dataset.test, FILES[2], FILES[3])


def _require_arrays(split: Split, images: str, labels: str) -> None:
    for name, array, legal in (
        (images, split.images, "uint8 [N, H, W], N at least 1"),
        (labels, split.labels, f"uint8 [{len(split.images)}], one per image"),
    ):
        shape = list(array.shape)
        fits = len(shape) == (3 if array is split.images else 1) and shape[0] == len(split.images)
        if array.dtype != np.uint8 or not fits or not shape[0]:
            raise DatasetError(f"{name} is {array.dtype} {shape}; legal: {legal}")


def _list(what: str, numbers: NDArray[np.intp]) -> str:
    """The first few of at least one number, as in "rows 3, 5, 8, ...": what is meant is clear."""
    shown = ", ".join(str(number) for number in numbers[:_SHOWN])
    more = ", ..." if len(numbers) > _SHOWN else ""
    return f"{what}{'s' if len(numbers) > 1 else ''} {shown}{more}"
