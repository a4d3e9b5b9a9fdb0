"""evaluation.report and evaluation.sampling: what is measured is what users get."""

from pathlib import Path

import click
import numpy as np
import pytest

from diffusion.reference import sample, to_uint8
from diffusion.samplers import make_plan
from evaluation.__main__ import parse_setting
from evaluation.report import Evaluator, Row, Setting, histogram, to_json, to_markdown
from evaluation.sampling import ImageSource
from serving.bundle import load_bundle
from serving.network import OnnxNetwork, embedding_table
from training.datasets import Dataset, load_dataset

SAMPLE = Path(__file__).parent / "data" / "mnist-sample"
MODEL = Path(__file__).parent.parent / "models" / "mnist"


@pytest.fixture(scope="module")
def real() -> Dataset:
    return load_dataset("mnist", SAMPLE, verify=False)


@pytest.fixture(scope="module")
def evaluator(real: Dataset) -> Evaluator:
    return Evaluator(real, 200)


@pytest.fixture(scope="module")
def source() -> ImageSource:
    return ImageSource(MODEL, "cpu")


def test_labels_are_shared_out_in_proportion() -> None:
    labels = np.repeat(np.array([0, 1, 2], np.uint8), [10, 20, 30])
    assert histogram(labels, 60).tolist() == [10, 20, 30]
    assert histogram(labels, 7).sum() == 7
    assert histogram(labels, 7).tolist() == [1, 2, 4]


def test_drawn_images_are_those_of_the_reference_loop(source: ImageSource) -> None:
    counts = np.array([0, 0, 3, 2, 0, 0, 0, 0, 0, 0])
    images, labels = source.draw(counts, 7, "ddpm", 4, 1.0)
    assert labels.tolist() == [2, 2, 2, 3, 3]

    bundle = load_bundle(MODEL)
    unet, table = OnnxNetwork(bundle, "cpu"), embedding_table(bundle)
    plan = make_plan("ddpm", bundle.manifest.schedule.to_schedule(), 4)
    for label, count in ((2, 3), (3, 2)):
        x_0 = sample(
            lambda x_t, t, label: unet(x_t, np.ascontiguousarray(table[t, label])),
            plan,
            [label] * count,
            7 + label,
            bundle.manifest.image_shape,
            bundle.manifest.null_label,
        )
        assert np.array_equal(images[labels == label], to_uint8(x_0))


def test_real_images_are_their_own_floor(evaluator: Evaluator) -> None:
    assert evaluator.floor.frechet_ratio == 1.0
    assert evaluator.floor.label_accuracy >= 0.98


def test_one_step_is_farther_from_the_data_than_ten(
    evaluator: Evaluator, source: ImageSource
) -> None:
    one = evaluator.measure(source, Setting("ddpm", 1, 1.0), seed=0)
    ten = evaluator.measure(source, Setting("ddpm", 10, 1.0), seed=0)
    assert one.frechet_ratio > 2 * ten.frechet_ratio
    assert ten.label_accuracy > one.label_accuracy


def test_too_many_or_too_few_images_are_refused(real: Dataset) -> None:
    with pytest.raises(ValueError, match=r"num_images is 201; legal: 100 \.\. 200"):
        Evaluator(real, 201)


def test_the_manifest_gets_no_timings_and_the_table_gets_every_row(evaluator: Evaluator) -> None:
    row = Row("generated", Setting("ddim", 5, 1.5), 200, 0.97, 3.25, 1.5, 40.0)
    quality = to_json(evaluator, [evaluator.floor, row], seed=3)
    assert "images_per_second" not in quality["rows"][1]
    assert quality["judges"]["features"]["sha256"] == evaluator.features_judge.sha256
    lines = to_markdown([evaluator.floor, row]).splitlines()
    assert lines[-1] == "| generated | ddim | 5 | 1.5 | 200 | 97.00% | 3.250 | 1.50 | 40.0 |"
    assert len(lines) == 4


def test_a_setting_is_parsed_or_refused() -> None:
    assert parse_setting("ddpm:10") == Setting("ddpm", 10, 1.0)
    assert parse_setting("ddim:20:1.5") == Setting("ddim", 20, 1.5)
    for text in ("ddpm", "ddpm:ten", "ddpm:10:1:2"):
        with pytest.raises(click.BadParameter, match="SAMPLER:NUM_STEPS"):
            parse_setting(text)
