"""evaluation.judge: the shipped judges read real images."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from evaluation.judge import FEATURES, JUDGES, LABELS, Judge, Judges, load_judges
from training import idx
from training.datasets import DATASETS

SAMPLE = Path(__file__).parent / "data" / "mnist-sample"
SHIPPED = [
    (dataset, name) for dataset in ("mnist", "fashion_mnist") for name in (FEATURES, *LABELS)
]


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    images = idx.read(SAMPLE / "t10k-images-idx3-ubyte.gz")[:, None]
    return images, idx.read(SAMPLE / "t10k-labels-idx1-ubyte.gz")


@pytest.fixture(scope="module")
def judges() -> Judges:
    return load_judges("mnist")


def test_every_judge_reads_real_test_digits_and_contradicts_wrong_labels(
    judges: Judges, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = digits
    for judge in (judges.features, *judges.labels):
        read = judge.predict(images)
        assert np.mean(read == labels) >= 0.985, judge.name
        assert np.mean(read == (labels + 1) % 10) <= 0.015, judge.name


@pytest.mark.parametrize(
    ("name", "least"), [(FEATURES, 0.994), *((name, 0.995) for name in LABELS)]
)
def test_judges_of_digits_are_as_accurate_as_the_protocol_asks(name: str, least: float) -> None:
    assert least <= Judge(JUDGES / "mnist" / f"{name}.onnx").test_accuracy < 1


def test_the_judges_are_networks_of_different_shapes(judges: Judges) -> None:
    every = (judges.features, *judges.labels)
    assert [judge.name for judge in every] == [FEATURES, *LABELS]
    assert len({judge.metadata["network"] for judge in every}) == 4
    assert len({judge.sha256 for judge in every}) == 4


def test_data_sets_have_judges_of_their_own(judges: Judges) -> None:
    other = load_judges("fashion_mnist")
    assert {j.sha256 for j in (judges.features, *judges.labels)}.isdisjoint(
        j.sha256 for j in (other.features, *other.labels)
    )


def test_logits_and_features_are_one_finite_row_per_image(
    judges: Judges, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    images = np.concatenate([digits[0]] * 3)  # more than one run holds
    for judge in (judges.features, *judges.labels):
        logits, features = judge.logits(images), judge.features(images)
        assert logits.shape == (600, 10)
        assert features.shape == (600, judge.num_features)
        assert logits.dtype == features.dtype == np.float32
        assert np.isfinite(logits).all()
        assert np.isfinite(features).all()
        assert np.array_equal(judge.predict(images), logits.argmax(axis=1))
        for rows in (logits, features):  # images do not see each other
            assert np.allclose(rows[:200], rows[400:], atol=1e-5)
            assert rows[:200].std(axis=0).max() > 0.1
    assert 64 <= judges.features.num_features <= 128


def test_an_answer_does_not_depend_on_the_number_of_threads(
    judges: Judges, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    single = Judge(JUDGES / "mnist" / "features.onnx", num_threads=1)
    several = Judge(JUDGES / "mnist" / "features.onnx", num_threads=3)
    assert np.allclose(single.features(digits[0]), several.features(digits[0]), atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 1, 28, 28), np.float32),  # in [-1, 1], that is: not what a server sends
        np.zeros((2, 28, 28), np.uint8),
        np.zeros((2, 3, 28, 28), np.uint8),
        np.zeros((0, 1, 28, 28), np.uint8),
    ],
)
def test_what_is_no_images_is_refused(judges: Judges, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"legal: uint8 \[N, 1, 28, 28\]"):
        judges.features.features(images)


@pytest.mark.parametrize(("dataset", "name"), SHIPPED)
def test_a_judge_file_says_how_it_was_made_and_nothing_of_where(dataset: str, name: str) -> None:
    path = JUDGES / dataset / f"{name}.onnx"
    assert path.stat().st_size < 2**20
    model = onnx.load(path)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert metadata.keys() == {
        "network", "epochs", "seed", "dataset", "dataset_md5", "test_accuracy"
    }  # fmt: skip
    assert metadata["dataset"] == dataset
    assert json.loads(metadata["dataset_md5"]) == DATASETS[dataset].md5


def test_a_data_set_without_judges_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'kmnist'.*: fashion_mnist, mnist$"):
        load_judges("kmnist")
    with pytest.raises(FileNotFoundError, match=r"'mnist'.*: none$"):
        load_judges("mnist", tmp_path)


def test_a_data_set_with_some_of_its_judges_has_none(tmp_path: Path) -> None:
    shutil.copytree(JUDGES / "mnist", tmp_path / "mnist")
    assert load_judges("mnist", tmp_path).labels[2].sha256
    (tmp_path / "mnist" / "labels-3.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="'labels-3' for data set 'mnist'"):
        load_judges("mnist", tmp_path)


def test_judges_in_the_folder_of_another_data_set_are_refused(tmp_path: Path) -> None:
    shutil.copytree(JUDGES / "mnist", tmp_path / "fashion_mnist")
    with pytest.raises(ValueError, match="trained on 'mnist', not on 'fashion_mnist'"):
        load_judges("fashion_mnist", tmp_path)
