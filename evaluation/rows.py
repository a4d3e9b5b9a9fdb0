"""One set of images, judged, as a value that JSON can hold. Shares are in [0, 1]."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat

from evaluation.setting import Setting


class Result(BaseModel):
    """Strict: an entry of another form is no result. NaN and Inf are none either."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class JudgeResult(Result):
    """A judge and how it does on all real test images.

    Attributes:
        sha256: of its file, 64 hex digits.
        network: name of its shape.
        num_test_images: that it read.
        test_accuracy: share of them that it reads correctly.
        test_accuracy_per_label: the same among the images of each label; None where there are none.
            The list is None where a report says it elsewhere.
    """

    sha256: str
    network: str
    num_test_images: int
    test_accuracy: FiniteFloat
    test_accuracy_per_label: list[FiniteFloat | None] | None

    def brief(self) -> Self:
        """Without what a report says in a table of its own."""
        return self.model_copy(update={"test_accuracy_per_label": None})


class Row(Result):
    """One set of images, judged.

    Attributes:
        source: where the images are from.
        setting: how they were drawn; None for others than generated images.
        seed: label y was drawn with seed + y; of the choice of images otherwise.
        num_images: N.
        label_accuracy: share that is read as the label asked for, mean over judges C.
        label_accuracy_per_judge: by each of them, in their order.
        label_accuracy_per_label: [judge][label]; None where a label has no images. The list is None
            where a report says it elsewhere.
        frechet: distance of judge F's features to those of the training set.
        frechet_ratio: to the floor, as many real test images.
        kernel_distance: squared MMD (KID) of the same features, mean over random subsets.
        kernel_distance_std: of the estimate on one subset.
        precision, recall, density, coverage: of the same features scaled to unit length, against as
            many training images, k = 5.
        images_per_second: while they were drawn, whatever else the machine did.
    """

    source: str
    setting: Setting | None
    seed: int
    num_images: int
    label_accuracy: FiniteFloat
    label_accuracy_per_judge: list[FiniteFloat]
    label_accuracy_per_label: list[list[FiniteFloat | None]] | None
    frechet: FiniteFloat
    frechet_ratio: FiniteFloat
    kernel_distance: FiniteFloat
    kernel_distance_std: FiniteFloat
    precision: FiniteFloat
    recall: FiniteFloat
    density: FiniteFloat
    coverage: FiniteFloat
    images_per_second: FiniteFloat | None = None

    def brief(self) -> Self:
        """Without what a report says in a table of its own."""
        return self.model_copy(update={"label_accuracy_per_label": None})


METRICS: dict[str, Callable[[Row], float]] = {
    "label_accuracy": lambda row: row.label_accuracy,
    "frechet": lambda row: row.frechet,
    "frechet_ratio": lambda row: row.frechet_ratio,
    "kernel_distance": lambda row: row.kernel_distance,
    "precision": lambda row: row.precision,
    "recall": lambda row: row.recall,
    "density": lambda row: row.density,
    "coverage": lambda row: row.coverage,
}
"""The numbers of a row that are summarised over seeds, by name."""


class Spread(Result):
    """Over seeds. std has Bessel's correction; None for one seed."""

    mean: FiniteFloat
    std: FiniteFloat | None


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(mean=float(np.mean(values)), std=std)


def curve_lines(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Name and rows, by rising num_steps, of each sampler and guidance scale."""
    drawn = [(row.setting, row) for row in rows if row.setting is not None]

    def line(pair: tuple[object, Row]) -> tuple[str, float]:
        setting = pair[1].setting
        assert setting is not None
        return setting.sampler, setting.guidance_scale

    ordered = sorted(drawn, key=lambda pair: (*line(pair), pair[0].num_steps))
    return [
        (f"{sampler}, guidance {scale:g}", [row for _, row in group])
        for (sampler, scale), group in groupby(ordered, key=line)
    ]
