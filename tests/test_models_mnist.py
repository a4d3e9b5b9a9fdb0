"""The embedded model: it draws the digits that it is asked for, at its defaults."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.judge import load_judges
from evaluation.sampling import ImageSource

MODEL = Path(__file__).parent.parent / "models" / "mnist"
IMAGES_PER_LABEL = 100


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((MODEL / "manifest.json").read_text())


def test_at_least_98_percent_of_1000_images_carry_their_label(manifest: dict) -> None:
    defaults = manifest["defaults"]
    images, labels = ImageSource(MODEL, "cpu").draw(
        np.full(10, IMAGES_PER_LABEL),
        seed=0,
        sampler=defaults["sampler"],
        num_steps=defaults["num_steps"],
        guidance_scale=defaults["guidance_scale"],
    )
    judges = load_judges("mnist").labels
    right = np.mean([judge.predict(images) == labels for judge in judges], axis=0)
    per_label = right.reshape(10, IMAGES_PER_LABEL).mean(axis=1)
    assert right.mean() >= 0.98, per_label
    assert per_label.min() >= 0.93, per_label


def test_it_was_trained_on_the_canonical_60000_images(manifest: dict) -> None:
    provenance = manifest["provenance"]
    assert provenance["dataset_md5"]["train-images-idx3-ubyte"] == (
        "6bbc9ace898e44ae57da46a324031adb"
    )
    assert provenance["dataset_label_counts"] == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert provenance["train_step"] == provenance["train_steps_total"]


def test_its_quality_was_measured_with_the_shipped_judges(manifest: dict) -> None:
    shipped = load_judges("mnist")
    measured_with = {name: judge["sha256"] for name, judge in manifest["quality"]["judges"].items()}
    assert measured_with == {
        judge.name: judge.sha256 for judge in (shipped.features, *shipped.labels)
    }


def test_it_is_under_10_megabytes() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 10e6
