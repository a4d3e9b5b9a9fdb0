"""evaluation.judge: the shipped judges read real digits."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from evaluation.judge import JUDGES, Judge
from training import idx

SAMPLE = Path(__file__).parent / "data" / "mnist-sample"


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    images = idx.read(SAMPLE / "t10k-images-idx3-ubyte.gz")[:, None]
    return images, idx.read(SAMPLE / "t10k-labels-idx1-ubyte.gz")


@pytest.mark.parametrize("name", ["features", "labels"])
def test_a_judge_reads_real_test_digits(name: str, digits: tuple[np.ndarray, np.ndarray]) -> None:
    judge = Judge(JUDGES / f"{name}.onnx")
    images, labels = digits
    assert np.mean(judge.predict(images) == labels) >= 0.98
    assert judge.test_accuracy >= 0.99


def test_a_judge_contradicts_wrong_labels(digits: tuple[np.ndarray, np.ndarray]) -> None:
    judge = Judge(JUDGES / "labels.onnx")
    images, labels = digits
    mislabelled = np.roll(labels, 1)
    assert np.mean(judge.predict(images) == mislabelled) < 0.3


def test_features_are_one_finite_row_per_image(digits: tuple[np.ndarray, np.ndarray]) -> None:
    features = Judge(JUDGES / "features.onnx").features(digits[0])
    assert features.shape == (200, 128)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_the_two_judges_are_different_networks() -> None:
    assert Judge(JUDGES / "features.onnx").sha256 != Judge(JUDGES / "labels.onnx").sha256


@pytest.mark.parametrize("name", ["features", "labels"])
def test_a_judge_file_says_nothing_about_the_machine_it_was_made_on(name: str) -> None:
    model = onnx.load(JUDGES / f"{name}.onnx")
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    keys = {prop.key for prop in model.metadata_props}
    assert keys == {"network", "epochs", "seed", "dataset", "test_accuracy"}
