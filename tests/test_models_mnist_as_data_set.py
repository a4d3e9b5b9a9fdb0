"""Images of the embedded model teach a network to read real digits."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import MNIST

from evaluation.classification import classification_accuracy_score
from tests.server_process import ServerProcess, environment
from training.datasets import DatasetError, load_dataset

SAMPLE = Path(__file__).parent / "data" / "mnist-sample"


def real_digits(repository: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 test images where they have been fetched, else the 700 that the repository has."""
    try:
        test = load_dataset("mnist", repository / "data" / "mnist").test
        return test.images, test.labels
    except DatasetError:
        sample = load_dataset("mnist", SAMPLE, verify=False)
        splits = (sample.train, sample.test)
        images = np.concatenate([split.images for split in splits])
        return images, np.concatenate([split.labels for split in splits])


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("count", "epochs", "least"),
    [
        pytest.param(2000, 10, 0.95, id="short"),
        pytest.param(10_000, 2, 0.97, id="full", marks=pytest.mark.fault),
    ],
)
def test_a_network_that_saw_synthetic_digits_only_reads_real_ones(
    count: int,
    epochs: int,
    least: float,
    mnist_server: ServerProcess,
    repository: Path,
    tmp_path: Path,
) -> None:
    command = ["dataset", "--target", mnist_server.target, "--output", str(tmp_path / "synthetic")]
    command += ["--count", str(count), "--test-count", "0"]
    subprocess.run(
        [sys.executable, "-m", "serving.client", *command],
        env=environment(),
        check=True,
    )
    synthetic = MNIST(tmp_path / "synthetic", train=True)
    images, labels = real_digits(repository)
    accuracy = classification_accuracy_score(
        synthetic.data.numpy()[:, None],
        synthetic.targets.numpy(),
        images[:, None],
        labels,
        seed=0,
        epochs=epochs,
        progress=False,
    )
    assert accuracy >= least
