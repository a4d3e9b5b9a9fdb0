"""evaluation.memorisation: exact nearest neighbours, and what copies do to the two shares."""

import numpy as np
import pytest

from evaluation import memorisation as module
from evaluation.memorisation import memorisation, nearest

RANDOM = np.random.default_rng(0)


def images(count: int, low: int = 0, high: int = 256) -> np.ndarray:
    return RANDOM.integers(low, high, (count, 1, 28, 28), dtype=np.uint8)


def test_nearest_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRAIN_AT_ONCE", 17)
    monkeypatch.setattr(module, "_QUERIES_AT_ONCE", 11)
    train, queries = images(60), images(25)
    difference = queries[:, None].astype(np.int64) - train
    squares = (difference**2).sum(axis=(2, 3, 4))
    distances, rows = nearest(queries, train, progress=False)
    assert np.array_equal(rows, squares.argmin(axis=1))
    assert np.array_equal(distances, (np.sqrt(squares.min(axis=1)) / 255).astype(np.float32))
    assert distances.dtype == np.float32
    assert rows.dtype == np.int64


def test_one_grey_level_of_one_pixel_is_seen_in_the_brightest_images() -> None:
    train = images(50, 250)
    queries = train[[7, 30, 30]].copy()
    queries[1, 0, 3, 4] ^= 1
    distances, rows = nearest(queries, train, progress=False)
    assert rows.tolist() == [7, 30, 30]
    assert distances.tolist() == [0, pytest.approx(1 / 255), 0]


@pytest.mark.parametrize(("a", "b"), [(0, 255), (255, 0), (0, 0), (255, 255)])
def test_the_largest_images_with_extreme_pixels_do_not_overflow(a: int, b: int) -> None:
    query, train = np.full((1, 4, 16, 16), a, np.uint8), np.full((3, 4, 16, 16), b, np.uint8)
    distances, rows = nearest(query, train, progress=False)
    assert distances[0] == pytest.approx(abs(a - b) / 255 * 32)
    assert rows[0] == 0


def test_the_first_of_equally_near_images_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRAIN_AT_ONCE", 2)
    train = np.concatenate([images(1), np.repeat(images(1), 4, axis=0)])
    assert nearest(train[3:4], train, progress=False)[1].tolist() == [1]


def test_samples_like_test_images_score_one_and_the_floor() -> None:
    measured = memorisation(images(400), images(400), images(300), progress=False)
    assert measured.median_ratio == pytest.approx(1, abs=0.01)
    assert measured.share_below_first_percentile == pytest.approx(0.01, abs=0.015)
    assert measured.copies == 0


def test_copies_lower_the_ratio_raise_the_share_and_head_the_gallery() -> None:
    train, test = images(100), images(100)
    generated = images(40)
    generated[[3, 9, 11]] = train[[50, 60, 70]]
    generated[20] = train[80]
    generated[20, 0, :2] ^= 1
    measured = memorisation(generated, test, train, num_pairs=4, progress=False)
    assert measured.share_below_first_percentile >= 4 / 40
    assert measured.copies == 3
    assert measured.closest.tolist() == [3, 9, 11, 20]
    assert measured.closest_rows.tolist() == [50, 60, 70, 80]
    assert measured.closest_distances[:3].tolist() == [0, 0, 0]
    assert 0 < measured.closest_distances[3] < measured.first_percentile
    all_copies = memorisation(train, test, train, progress=False)
    assert all_copies.median_ratio == 0
    assert all_copies.share_below_first_percentile == 1


def test_distances_count_one_for_a_pixel_from_black_to_white() -> None:
    black = np.zeros((1, 1, 28, 28), np.uint8)
    dots = black.copy()
    dots[0, 0, 0, :9] = 255
    measured = memorisation(dots, dots, black, progress=False)
    assert measured.generated_median == measured.test_median == 3
    assert measured.median_ratio == 1


def test_asking_for_more_pairs_than_samples_gives_all() -> None:
    measured = memorisation(images(5), images(5), images(5), num_pairs=9, progress=False)
    assert sorted(measured.closest.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generated": images(3).astype(np.float32)}, r"generated is float32 \[3, 1, 28, 28\]"),
        ({"generated": images(3)[:, 0]}, r"generated is .*; legal: uint8 \[N, 1, 28, 28\]"),
        ({"generated": images(0)}, "number of generated is 0; legal: at least 1"),
        ({"test": images(0)}, "number of test is 0; legal: at least 1"),
        ({"train": images(0)}, "number of train is 0; legal: at least 1"),
        ({"train": images(3)[:, 0]}, r"train is of shape \[3, 28, 28\]; legal: \[L, C, H, W\]"),
        (
            {"train": np.zeros((3, 1, 33, 32), np.uint8)},
            r"pixels of train is 1056; legal: 1 \.\. 1",
        ),
        ({"num_pairs": -1}, "num_pairs is -1; legal: at least 0"),
        ({"test": np.zeros((1, 1, 28, 28), np.uint8)}, "median distance of test is 0.0; legal: ab"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict, message: str) -> None:
    train = np.concatenate([images(4), np.zeros((1, 1, 28, 28), np.uint8)])
    with pytest.raises(ValueError, match=message):
        memorisation(
            **{"generated": images(4), "test": images(4), "train": train} | change, progress=False
        )
