"""Label accuracy and Frechet distance of a bundle at given settings, beside the real-data floor."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.frechet import frechet_distance
from evaluation.judge import JUDGES, Judge
from evaluation.sampling import ImageSource
from training.datasets import Dataset

PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class Setting:
    """How images are drawn."""

    sampler: str
    num_steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Row:
    """What was measured at one setting. Real rows have no setting."""

    source: str
    setting: Setting | None
    num_images: int
    label_accuracy: float  # share that judge C reads as the label asked for
    frechet: float  # judge F's features, to the whole training set
    frechet_ratio: float  # to the floor: as many real test images
    images_per_second: float | None


class Evaluator:
    """Judges and real data, set up once.

    Args:
        dataset: the real images.
        num_images: N, with the training set's share of each label; at most the test set's size.
    """

    def __init__(self, dataset: Dataset, num_images: int) -> None:
        if not 100 <= num_images <= len(dataset.test.labels):
            raise ValueError(
                f"num_images is {num_images}; legal: 100 .. {len(dataset.test.labels)}"
            )
        self.features_judge = Judge(JUDGES / "features.onnx")
        self.labels_judge = Judge(JUDGES / "labels.onnx")
        self._train_features = self.features_judge.features(dataset.train.images[:, None])
        self.counts = histogram(dataset.train.labels, num_images)
        rows = np.random.default_rng(0).permutation(len(dataset.test.labels))[:num_images]
        images, labels = dataset.test.images[rows, None], dataset.test.labels[rows]
        self._floor = self._frechet(images)
        self.floor = self._row("real test images", None, images, labels.astype(np.int64), None)

    def _frechet(self, images: NDArray[np.uint8]) -> float:
        return frechet_distance(self.features_judge.features(images), self._train_features)

    def _row(
        self,
        source: str,
        setting: Setting | None,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        images_per_second: float | None,
    ) -> Row:
        distance = self._frechet(images)
        accuracy = float(np.mean(self.labels_judge.predict(images) == labels))
        return Row(
            source, setting, len(images), accuracy, distance, distance / self._floor,
            images_per_second,
        )  # fmt: skip

    def measure(self, source: ImageSource, setting: Setting, seed: int) -> Row:
        """Draw at ``setting`` and judge."""
        begin = time.perf_counter()
        images, labels = source.draw(
            self.counts, seed, setting.sampler, setting.num_steps, setting.guidance_scale
        )
        pace = len(images) / (time.perf_counter() - begin)
        return self._row("generated", setting, images, labels, pace)


def histogram(labels: NDArray[np.uint8], num_images: int) -> NDArray[np.int64]:
    """``num_images`` shared out over labels in proportion to ``labels``: int64 [num_labels]."""
    share = np.bincount(labels) * num_images / len(labels)
    counts = np.floor(share).astype(np.int64)
    largest_remainders = np.argsort(counts - share, kind="stable")[: num_images - counts.sum()]
    counts[largest_remainders] += 1
    return counts


def to_json(evaluator: Evaluator, rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """The manifest's ``quality`` section."""
    return {
        "protocol_version": PROTOCOL_VERSION,
        "seed": seed,
        "judges": {
            name: {"sha256": judge.sha256, "test_accuracy": judge.test_accuracy}
            for name, judge in (
                ("features", evaluator.features_judge),
                ("labels", evaluator.labels_judge),
            )
        },
        "rows": [
            {key: value for key, value in asdict(row).items() if key != "images_per_second"}
            for row in rows
        ],
    }


def to_markdown(rows: Sequence[Row]) -> str:
    """The same numbers as a table."""
    lines = [
        "| source | sampler | num_steps | guidance | N | labels | Frechet | to floor | images/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        setting = row.setting
        cells = (
            row.source,
            *(
                (setting.sampler, str(setting.num_steps), f"{setting.guidance_scale:g}")
                if setting
                else ("", "", "")
            ),
            f"{row.num_images:,}",
            f"{row.label_accuracy:.2%}",
            f"{row.frechet:.3f}",
            f"{row.frechet_ratio:.2f}",
            "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
