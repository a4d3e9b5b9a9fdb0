"""evaluation.drawing: chunks are exact, stored one at a time, and never drawn twice."""

from pathlib import Path

import numpy as np
import pytest

from evaluation import drawing
from evaluation.drawing import draw, label_order
from evaluation.sampling import ImageSource
from evaluation.setting import Setting
from evaluation.store import Store
from tests.tiny_evaluation import write_bundle

REAL_LABELS = np.repeat(np.arange(4), [10, 0, 20, 31])
SETTING = Setting("ddpm", 3)


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return ImageSource(write_bundle(tmp_path / "bundle"), "cpu")


def test_every_beginning_of_the_order_has_the_real_shares() -> None:
    real = np.repeat(np.array([0, 1, 2]), [10, 20, 30])
    for n, expected in ((60, [10, 20, 30]), (7, [1, 2, 4]), (600, [100, 200, 300])):
        labels, indexes = label_order(real, n)
        assert np.bincount(labels).tolist() == expected
        for label in range(3):
            assert indexes[labels == label].tolist() == list(range(expected[label]))
    labels, indexes = label_order(REAL_LABELS, 500)
    for n in range(1, 500):
        counts = np.bincount(labels[:n], minlength=4)
        assert np.abs(counts - n * np.array([10, 0, 20, 31]) / 61).max() <= 1
        shorter = label_order(REAL_LABELS, n)
        assert np.array_equal(shorter[0], labels[:n])
        assert np.array_equal(shorter[1], indexes[:n])


def test_chunks_are_what_one_draw_gives(
    tmp_path: Path, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw(source, Store(tmp_path / "whole"), SETTING, 5, REAL_LABELS, 61)
    monkeypatch.setattr(drawing, "_IMAGES_AT_ONCE", 8)
    parts = draw(source, Store(tmp_path / "parts"), SETTING, 5, REAL_LABELS, 61)
    assert len(list((tmp_path / "parts" / "images").iterdir())) == 8
    assert np.array_equal(parts.images, whole.images)
    assert np.array_equal(parts.labels, whole.labels)
    for i in (0, 17, 60):  # image i is Generate(labels[i], first_index=indexes[i])
        label, index = parts.labels[i], parts.indexes[i]
        counts, first = np.zeros(4, np.int64), np.zeros(4, np.int64)
        counts[label], first[label] = 1, index
        [alone] = source.draw(counts, 5, "ddpm", 3, 1.0, first)[0]
        assert np.array_equal(parts.images[i], alone)


def test_a_larger_set_begins_with_the_chunks_of_a_smaller_one(
    tmp_path: Path, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "_IMAGES_AT_ONCE", 8)
    store = Store(tmp_path / "store")
    few = draw(source, store, SETTING, 5, REAL_LABELS, 24)
    before = set((tmp_path / "store" / "images").iterdir())
    many = draw(source, store, SETTING, 5, REAL_LABELS, 61)
    assert np.array_equal(many.images[:24], few.images)
    assert len(set((tmp_path / "store" / "images").iterdir()) - before) == 5
    assert many.seconds > few.seconds > 0


def test_a_chunk_costs_less_where_an_image_costs_more() -> None:
    sizes = [drawing._chunk_size(Setting("ddpm", steps)) for steps in (1, 10, 250, 1000)]
    assert sizes == [1000, 1000, 400, 100]
    assert drawing._chunk_size(Setting("ddpm", 1000, 2.0)) == 64
