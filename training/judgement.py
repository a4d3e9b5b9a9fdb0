"""Frechet distance and label accuracy of a few hundred images: a quick look during a run.

Who judges is handed in: this module, like the rest of training, knows nothing of evaluation.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.datasets import Dataset

REFERENCE_IMAGES = 10_000
"""Training images that the distance is measured to, at most, spread evenly over the set."""

Images = NDArray[np.uint8]
Features = NDArray[np.float32]


class Judgement:
    """Judges images uint8 [N, 1, H, W] and the labels that were asked for, int64 [N].

    The distance of a few hundred images is far above that of the 10,000 that evaluation takes:
    compare it with others of the same run, or read the ratio.

    Args:
        dataset: the real images.
        features: images -> float32 [N, D].
        read_labels: each images -> int64 [N], independent of the others.
        distance: (features [N, D], features [M, D]) -> Frechet distance.
    """

    def __init__(
        self,
        dataset: Dataset,
        features: Callable[[Images], Features],
        read_labels: Sequence[Callable[[Images], NDArray[np.int64]]],
        distance: Callable[[Features, Features], float],
    ) -> None:
        self._dataset = dataset
        self._features, self._read_labels, self._distance = features, read_labels, distance
        self._floors: dict[int, float] = {}

    @cached_property
    def _reference(self) -> Features:
        images = self._dataset.train.images
        count = min(REFERENCE_IMAGES, len(images))
        return self._features(images[np.arange(count) * len(images) // count, None])

    def _floor(self, count: int) -> float:
        """Distance of as many real test images."""
        if count not in self._floors:
            features = self._features(self._dataset.test.images[:count, None])
            self._floors[count] = self._distance(features, self._reference)
        return self._floors[count]

    def __call__(self, images: Images, labels: NDArray[np.int64]) -> dict[str, float]:
        """Judge at least two images.

        Returns:
            frechet, at least 0; label_accuracy, the mean over the readers, 0 .. 1; and
            frechet_ratio, frechet over that of as many test images, where there are as many.
        """
        frechet = self._distance(self._features(images), self._reference)
        right = [np.mean(read(images) == labels) for read in self._read_labels]
        figures = {"frechet": frechet, "label_accuracy": float(np.mean(right))}
        if len(images) <= len(self._dataset.test.images):
            figures["frechet_ratio"] = frechet / self._floor(len(images))
        return figures
