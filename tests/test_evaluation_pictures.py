"""evaluation.pictures: every image where it belongs, every line of the curve."""

from io import BytesIO

import numpy as np
from PIL import Image

from evaluation.pictures import curve_picture, pairs_picture, samples_picture
from evaluation.results import Curve
from evaluation.rows import Row, curve_lines
from evaluation.setting import Setting


def pixels(content: bytes) -> np.ndarray:
    """One number per pixel of the images: the gaps and the enlargement taken away."""
    return np.asarray(Image.open(BytesIO(content)))[::2, ::2]


def row(setting: Setting | None, ratio: float = 2.0) -> Row:
    return Row(
        source="generated", setting=setting, seed=0, num_images=100, label_accuracy=0.9,
        label_accuracy_per_judge=[0.9], label_accuracy_per_label=None, frechet=1.0,
        frechet_ratio=ratio, kernel_distance=0.1, kernel_distance_std=0.1, precision=0.9,
        recall=0.8, density=1.0, coverage=0.9,
    )  # fmt: skip


def test_samples_stand_in_the_row_of_their_label() -> None:
    labels = np.array([2, 0, 2, 1, 2])
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 28, 28), np.uint8)
    sheet = pixels(samples_picture(images, labels, num_labels=3, columns=2))
    assert sheet.shape == (3 * 30, 2 * 30)
    cells = [[sheet[30 * i + 15, 30 * j + 15] for j in range(2)] for i in range(3)]
    assert cells == [[1, 96], [3, 96], [0, 2]]


def test_each_sample_stands_above_its_training_image() -> None:
    ones = np.ones((1, 28, 28), np.uint8)
    samples, train = (np.stack([ones * (start + i) for i in range(3)]) for start in (10, 200))
    sheet = pixels(pairs_picture(samples, train, columns=2))
    cells = [[sheet[30 * i + 15, 30 * j + 15] for j in range(2)] for i in range(4)]
    assert cells == [[10, 11], [200, 201], [12, 96], [202, 96]]


def test_images_may_have_colours() -> None:
    images = np.zeros((4, 3, 8, 8), np.uint8)
    images[:, 1] = 200
    sheet = pixels(samples_picture(images, np.array([0, 0, 1, 1]), num_labels=2, columns=2))
    assert sheet.shape == (20, 20, 3)
    assert sheet[5, 5].tolist() == [0, 200, 0]


def test_the_curve_has_a_line_for_each_sampler_and_scale_by_rising_num_steps() -> None:
    settings = [
        Setting(sampler, steps, scale)
        for steps in (10, 1, 5)
        for sampler in ("ddpm", "ddim")
        for scale in (1.5, 1.0)
    ]
    lines = curve_lines([row(setting) for setting in settings])
    assert [name for name, _ in lines] == [
        "ddim, guidance 1", "ddim, guidance 1.5", "ddpm, guidance 1", "ddpm, guidance 1.5",
    ]  # fmt: skip
    for _, rows in lines:
        assert [r.setting.num_steps for r in rows if r.setting] == [1, 5, 10]


def test_the_picture_of_a_curve_is_small_and_the_same_for_the_same_numbers() -> None:
    settings = [
        Setting(sampler, steps, scale)
        for steps in (1, 2, 4, 6, 8, 10, 15, 20, 50, 100, 250, 1000)
        for sampler in ("ddpm", "ddim", "dpmpp_2m")
        for scale in (1.0, 1.25, 1.5, 2.0)
    ]
    rows = [row(setting, 1 + 50 / setting.num_steps) for setting in settings]
    curve = Curve(floors=[row(None, 1.0)], rows=rows)
    content = curve_picture(curve)
    assert content == curve_picture(curve)
    assert 10_000 < len(content) < 200_000
