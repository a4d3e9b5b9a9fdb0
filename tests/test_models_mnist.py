"""The shipped models of digits: they draw what they are asked for, at their defaults."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.judge import load_judges
from evaluation.sampling import ImageSource
from serving.cpu_features import saturates_8_bits

MODELS = Path(__file__).parent.parent / "models"
SHIPPED = ("mnist", "mnist-int8", "mnist-fp16")
IMAGES_PER_LABEL = 100


@pytest.fixture(scope="module", params=SHIPPED)
def model(request: pytest.FixtureRequest) -> Path:
    return MODELS / request.param


@pytest.fixture(scope="module")
def manifest(model: Path) -> dict:
    return json.loads((model / "manifest.json").read_text())


def drawn(name: str, provider: str, per_label: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, at the defaults of the model."""
    defaults = json.loads((MODELS / name / "manifest.json").read_text())["defaults"]
    return ImageSource(MODELS / name, provider).draw(
        np.full(10, per_label),
        seed=0,
        sampler=defaults["sampler"],
        num_steps=defaults["num_steps"],
        guidance_scale=defaults["guidance_scale"],
    )


ON_OPENVINO = pytest.param(
    "mnist-int8",
    "openvino",
    marks=pytest.mark.skipif(saturates_8_bits(), reason="OpenVINO is refused 8 bits on this CPU"),
)


@pytest.mark.parametrize(
    ("name", "provider"), [("mnist", "cpu"), ("mnist-int8", "cpu"), ON_OPENVINO]
)
def test_at_least_98_percent_of_1000_images_carry_their_label(name: str, provider: str) -> None:
    images, labels = drawn(name, provider, IMAGES_PER_LABEL)
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


def test_it_is_under_10_megabytes(model: Path) -> None:
    assert sum(path.stat().st_size for path in model.iterdir()) < 10e6


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mnist-int8", "quantized_from_unet_sha256"),
        ("mnist-fp16", "halved_from_unet_sha256"),
    ],
)
def test_those_in_other_precisions_were_made_from_the_one_in_float32(name: str, key: str) -> None:
    manifest, made_from = (
        json.loads((MODELS / each / "manifest.json").read_text()) for each in (name, "mnist")
    )
    assert manifest["version"] == made_from["version"]
    assert manifest["defaults"] == made_from["defaults"]
    assert manifest["provenance"][key] == made_from["files"]["unet.onnx"]["sha256"]


def test_the_one_in_half_precision_draws_nearly_the_same_pixels() -> None:
    exact, halved = (drawn(name, "cpu", 3)[0].astype(int) for name in ("mnist", "mnist-fp16"))
    apart = np.abs(halved - exact)
    assert np.mean(apart <= 1) >= 0.995
    assert apart.max() <= 10
