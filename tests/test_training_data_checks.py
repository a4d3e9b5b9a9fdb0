"""What is looked at before a run starts: counts, ranges, shapes, blanks, duplicates."""

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_training import small_digits, tiny_config
from training.data_checks import blank_rows, look_over, require_fit, rows_in_both
from training.datasets import Dataset, DatasetError, Split


def with_split(which: str, **changes: Any) -> Dataset:
    """The small digits with one array of one split changed."""
    data = small_digits()
    split = dataclasses.replace(getattr(data, which), **changes)
    return dataclasses.replace(data, **{which: split})


def test_real_digits_pass_without_a_warning() -> None:
    require_fit(tiny_config(Path("run")), small_digits())
    report = look_over(small_digits(), 10)
    assert report.summary == (
        "500 training and 200 test images, 14 x 14; 10 labels, 39 to 66 training images of each"
    )
    assert report.warnings == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": 32},
            "image_size is (32, 32); legal: (14, 14), that of train-images-idx3-ubyte",
        ),
        (
            {"num_labels": 9},
            "num_labels is 9; legal: at least 10, as train-labels-idx1-ubyte has label 9 in row 4",
        ),
        ({"image_channels": 3}, "image_channels is 3; legal: 1, as IDX is grey"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_by_field_file_and_value(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        require_fit(tiny_config(Path("run"), **changes), small_digits())


def test_a_label_out_of_range_in_the_test_images_is_found_too() -> None:
    labels = small_digits().test.labels.copy()
    labels[123] = 200
    message = "num_labels is 10; legal: at least 201, as t10k-labels-idx1-ubyte has label 200 in "
    with pytest.raises(ValueError, match=message + "row 123"):
        require_fit(tiny_config(Path("run")), with_split("test", labels=labels))


def test_test_images_of_another_size_are_refused() -> None:
    images = np.zeros((200, 14, 15), np.uint8)
    with pytest.raises(ValueError, match=r"legal: \(14, 15\), that of t10k-images-idx3-ubyte"):
        require_fit(tiny_config(Path("run")), with_split("test", images=images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": np.zeros((500, 14, 14), np.float32)},
            "train-images.* is float32 [500, 14, 14]",
        ),
        ({"images": np.zeros((500, 14), np.uint8)}, "train-images-idx3-ubyte is uint8 [500, 14]; "),
        ({"labels": np.zeros(499, np.uint8)}, "train-labels-idx1-ubyte is uint8 [499]; legal: "),
        ({"labels": np.zeros(500, np.int64)}, "train-labels-idx1-ubyte is int64 [500]; legal: "),
        (
            {"images": np.zeros((0, 14, 14), np.uint8), "labels": np.zeros(0, np.uint8)},
            "train-images-idx3-ubyte is uint8 [0, 14, 14]; legal: uint8 [N, H, W], N at least 1",
        ),
    ],
)
def test_arrays_of_another_kind_are_refused_by_file_shape_and_type(
    changes: dict[str, Any], message: str
) -> None:
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(DatasetError, match=pattern):
        require_fit(tiny_config(Path("run")), with_split("train", **changes))


def test_blank_images_are_counted_whatever_their_value() -> None:
    images = small_digits().train.images.copy()
    images[3], images[[40, 41, 42]], images[499] = 0, 255, 7
    assert blank_rows(images).tolist() == [3, 40, 41, 42, 499]
    [warning] = look_over(with_split("train", images=images), 10).warnings
    assert warning == (
        "train-images-idx3-ubyte: 5 of 500 images are blank, all pixels of one value, as in rows "
        "3, 40, 41, ..."
    )


def test_test_images_that_are_training_images_are_counted() -> None:
    data = small_digits()
    images = data.test.images.copy()
    images[17] = data.train.images[400]
    assert rows_in_both(images, data.train.images).tolist() == [17]
    [warning] = look_over(with_split("test", images=images), 10).warnings
    assert warning.startswith("t10k-images-idx3-ubyte: 1 of 200 test images are training images")
    assert "as in row 17;" in warning


def test_labels_without_an_image_are_named() -> None:
    labels = small_digits().train.labels.copy()
    labels[labels == 6] = 5
    [warning] = look_over(with_split("train", labels=labels), 11).warnings
    assert warning.startswith("train-labels-idx1-ubyte: no image of labels 6, 10, and the network")


def test_all_of_it_takes_under_two_seconds_at_the_size_of_mnist() -> None:
    random = np.random.default_rng(0)
    train, test = (
        Split(
            random.integers(0, 256, (count, 28, 28), np.uint8),
            random.integers(0, 10, count, np.uint8),
        )
        for count in (60_000, 10_000)
    )
    data = dataclasses.replace(small_digits(), train=train, test=test)
    started = time.process_time()
    require_fit(tiny_config(Path("run"), image_size=28), data)
    look_over(data, 10)
    assert time.process_time() - started < 2
