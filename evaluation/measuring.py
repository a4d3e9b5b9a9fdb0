"""Sets of images, judged: real ones, crude ones and generated ones by the same yardstick."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evaluation.drawing import Drawn, draw, label_order
from evaluation.frechet import frechet_distance
from evaluation.judge import Judge, Judges
from evaluation.kernel_distance import kernel_distance
from evaluation.manifold import manifold_metrics, on_unit_sphere
from evaluation.protocol import (
    KERNEL_SUBSET_SIZE,
    KERNEL_SUBSETS,
    NEIGHBOURS,
    PROTOCOL_VERSION,
    REFERENCE_SEED,
    require_num_images,
)
from evaluation.reference_images import Labelled, class_gaussians, disjoint_subsets, uniform_noise
from evaluation.rows import JudgeResult, Row
from evaluation.sampling import ImageSource
from evaluation.setting import Setting
from evaluation.store import Key, Store
from training.datasets import Dataset

TEST, TRAINING = "test images", "training images"
NOISE, GAUSSIANS = "uniform noise", "a Gaussian per label"
GENERATED = "generated"

_ROWS, _FEATURES, _JUDGES = "rows", "features", "judges"


class Evaluator:
    """A bundle, the real data, their judges, and what is already known of them.

    Args:
        source: draws the images.
        dataset: the real ones.
        dataset_name: a key of training.datasets.DATASETS.
        judges: trained on the same data set.
        store: keeps what is measured.
    """

    def __init__(
        self,
        source: ImageSource,
        dataset: Dataset,
        dataset_name: str,
        judges: Judges,
        store: Store,
    ) -> None:
        self.source = source
        self.dataset = dataset
        self.dataset_name = dataset_name
        self.judges = judges
        self.store = store
        self.num_labels = len(dataset.label_names)

    def key(self, what: str, **details: object) -> Key:
        """A store's key: everything that a measurement of any kind may depend on, but the images.

        Args:
            what: name of the measurement.
            details: what it depends on besides the real data and the judges.
        """
        return {
            "protocol_version": PROTOCOL_VERSION,
            "what": what,
            "data": self.dataset.checksums,
            "features": self.judges.features.sha256,
            "labels": [judge.sha256 for judge in self.judges.labels],
            **details,
        }

    @cached_property
    def train_features(self) -> NDArray[np.float32]:
        """Judge F's features of all training images: float32 [M, D]."""
        judge = self.judges.features
        key = {"data": self.dataset.checksums, "features": judge.sha256}
        images = self.dataset.train.images[:, None]
        arrays = self.store.arrays(_FEATURES, key, lambda: {"features": judge.features(images)})
        return arrays["features"]

    def judge_result(self, judge: Judge) -> JudgeResult:
        """A judge on all real test images."""
        test = self.dataset.test
        key = {"data": self.dataset.checksums, "judge": judge.sha256}

        def compute() -> JudgeResult:
            right = judge.predict(test.images[:, None]) == test.labels
            return JudgeResult(
                sha256=judge.sha256,
                network=judge.metadata.get("network", ""),
                num_test_images=len(right),
                test_accuracy=float(np.mean(right)),
                test_accuracy_per_label=_per_label(right, test.labels, self.num_labels),
            )

        return self.store.result(_JUDGES, key, JudgeResult, compute)

    def drawn(self, setting: Setting, seed: int, num_images: int) -> Drawn:
        """Generated images with the training set's share of each label."""
        labels = self.dataset.train.labels
        return draw(self.source, self.store, setting, seed, labels, num_images)

    def generated(self, setting: Setting, seed: int, num_images: int) -> Row:
        """Generated images, judged."""
        require_num_images("num_images", num_images, self.dataset)
        details = {
            "model": self.source.identity(setting), "seed": seed, "num_images": num_images,
        }  # fmt: skip

        def compute() -> Row:
            drawn = self.drawn(setting, seed, num_images)
            row = self._row(GENERATED, (drawn.images, drawn.labels), setting, seed)
            pace = num_images / drawn.seconds if drawn.seconds > 0 else None
            return row.model_copy(update={"images_per_second": pace})

        return self.store.result(_ROWS, self.key(GENERATED, **details), Row, compute)

    def reference(self, source: str, num_images: int) -> Row:
        """A floor or a ceiling at N: TEST, TRAINING, NOISE or GAUSSIANS, judged."""
        require_num_images("num_images", num_images, self.dataset)
        key = self.key(source, num_images=num_images)
        return self.store.result(
            _ROWS, key, Row, lambda: self._measure_reference(source, num_images)
        )

    def _measure_reference(self, source: str, num_images: int) -> Row:
        if source == TRAINING:
            return self._training_floor(num_images)
        if source == TEST:
            [images] = disjoint_subsets(self.dataset.test, [num_images], REFERENCE_SEED)
        else:
            train = self.dataset.train
            labels, _ = label_order(train.labels, num_images)
            if source == NOISE:
                height, width = train.images.shape[1:]
                images = uniform_noise(num_images, (height, width), REFERENCE_SEED), labels
            else:
                images = class_gaussians(train, labels, REFERENCE_SEED), labels
        return self._row(source, images, None, REFERENCE_SEED)

    def _training_floor(self, num_images: int) -> Row:
        """N training images against all others; for the manifold, against another N of them."""
        rows, rest = np.split(self._train_order(), [num_images])
        train = self.dataset.train
        labelled = train.images[rows, None], train.labels[rows].astype(np.int64)
        return self._row(TRAINING, labelled, None, REFERENCE_SEED, rest)

    def _train_order(self) -> NDArray[np.int64]:
        return np.random.default_rng(REFERENCE_SEED).permutation(len(self.dataset.train.labels))

    def _row(
        self,
        source: str,
        labelled: Labelled,
        setting: Setting | None,
        seed: int,
        against: NDArray[np.int64] | None = None,
    ) -> Row:
        """Judge a set; ``against``: rows of the training set, None for all of them."""
        images, labels = labelled
        num_images = len(images)
        order = self._train_order() if against is None else against
        train = self.train_features if against is None else self.train_features[against]
        features = self.judges.features.features(images)
        frechet = frechet_distance(features, train)
        floor = frechet if source == TEST else self.reference(TEST, num_images).frechet
        kernel = kernel_distance(
            features,
            train,
            num_subsets=KERNEL_SUBSETS,
            subset_size=min(KERNEL_SUBSET_SIZE, num_images),
            seed=REFERENCE_SEED,
        )
        as_many = self.train_features[order[:num_images]]
        # Distances on the features as they are would call noise precise: see on_unit_sphere.
        manifold = manifold_metrics(on_unit_sphere(as_many), on_unit_sphere(features), NEIGHBOURS)
        right = [judge.predict(images) == labels for judge in self.judges.labels]
        return Row(
            source=source,
            setting=setting,
            seed=seed,
            num_images=num_images,
            label_accuracy=float(np.mean(right)),
            label_accuracy_per_judge=[float(np.mean(of_judge)) for of_judge in right],
            label_accuracy_per_label=[
                _per_label(of_judge, labels, self.num_labels) for of_judge in right
            ],
            frechet=frechet,
            frechet_ratio=frechet / floor,
            kernel_distance=kernel.mean,
            kernel_distance_std=kernel.std,
            precision=manifold.precision,
            recall=manifold.recall,
            density=manifold.density,
            coverage=manifold.coverage,
        )


def _per_label(
    right: NDArray[np.bool_], labels: NDArray[np.integer], num_labels: int
) -> list[float | None]:
    """Mean of ``right`` among the images of each label; None where there are none."""
    counts = np.bincount(labels, minlength=num_labels)
    hits = np.bincount(labels, weights=right, minlength=num_labels)
    pairs = zip(hits.tolist(), counts.tolist(), strict=True)
    return [hit / count if count else None for hit, count in pairs]
