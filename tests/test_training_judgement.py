"""A quick look at generated images: distance and labels, with the judges handed in."""

import dataclasses

import numpy as np
import pytest

from evaluation.frechet import frechet_distance
from tests.tiny_training import small_digits
from training.datasets import Dataset, Split
from training.judgement import REFERENCE_IMAGES, Judgement


def features(images: np.ndarray) -> np.ndarray:
    """Mean brightness of the four quadrants."""
    _, _, height, width = images.shape
    halves = images.reshape(-1, 2, height // 2, 2, width // 2).astype(np.float32)
    return halves.mean(axis=(2, 4)).reshape(-1, 4)


def read_brightest_column(images: np.ndarray) -> np.ndarray:
    return images.sum(axis=(1, 2)).argmax(axis=1)


def read_zero(images: np.ndarray) -> np.ndarray:
    return np.zeros(len(images), np.int64)


def judgement(dataset: Dataset | None = None) -> Judgement:
    readers = [read_brightest_column, read_zero]
    return Judgement(dataset or small_digits(), features, readers, frechet_distance)


def columns(labels: list[int]) -> np.ndarray:
    """Images whose brightest column is the label."""
    images = np.zeros((len(labels), 1, 14, 14), np.uint8)
    images[np.arange(len(labels)), :, :, labels] = 255
    return images


def test_the_distance_is_that_to_the_training_images() -> None:
    train, test = small_digits().train.images[:, None], small_digits().test.images[:100, None]
    found = judgement()(test, np.zeros(100, np.int64))
    assert found["frechet"] == frechet_distance(features(test), features(train))
    assert judgement()(train, np.zeros(500, np.int64))["frechet"] == pytest.approx(0, abs=1e-6)


def test_the_ratio_is_one_for_as_many_test_images_and_larger_for_noise() -> None:
    judge = judgement()
    test = small_digits().test.images[:, None]
    noise = np.random.default_rng(0).integers(0, 256, test.shape, dtype=np.uint8)
    labels = np.zeros(len(test), np.int64)
    assert judge(test, labels)["frechet_ratio"] == 1
    assert judge(noise, labels)["frechet_ratio"] > 100
    assert judge(test[:50], labels[:50])["frechet_ratio"] == 1  # the floor of 50, not of 200


def test_without_enough_test_images_there_is_no_ratio() -> None:
    images = np.concatenate([small_digits().test.images[:, None]] * 2)
    assert judgement()(images, np.zeros(400, np.int64)).keys() == {"frechet", "label_accuracy"}


def test_label_accuracy_is_the_mean_over_the_readers() -> None:
    labels = np.array([0, 3, 5, 7])
    found = judgement()(columns([0, 3, 5, 9]), labels)
    assert found["label_accuracy"] == pytest.approx((3 / 4 + 1 / 4) / 2)


def test_a_large_training_set_is_represented_by_images_spread_over_it() -> None:
    count = 3 * REFERENCE_IMAGES
    images = np.zeros((count, 2, 2), np.uint8)
    images[:, 0, 0] = np.arange(count) * 3 // count  # as if sorted by label
    seen: list[np.ndarray] = []

    def spy(batch: np.ndarray) -> np.ndarray:
        seen.append(batch)
        return features(batch)

    train = Split(images, np.zeros(count, np.uint8))
    dataset = dataclasses.replace(small_digits(), train=train)
    Judgement(dataset, spy, [read_zero], frechet_distance)(
        np.zeros((300, 1, 2, 2), np.uint8), np.zeros(300, np.int64)
    )
    reference = max(seen, key=len)
    assert len(reference) == REFERENCE_IMAGES
    counts = np.bincount(reference[:, 0, 0, 0], minlength=3)
    assert counts.max() - counts.min() <= 1
