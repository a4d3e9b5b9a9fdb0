"""Our metrics equal those of public packages on the same arrays."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from evaluation.frechet import frechet_distance
from evaluation.judge import JUDGES, Judge
from evaluation.kernel_distance import kernel_distance, squared_mmd
from evaluation.manifold import manifold_metrics
from training.datasets import load_dataset

SAMPLE = Path(__file__).parent / "data" / "mnist-sample"


def judged_digits() -> tuple[np.ndarray, np.ndarray]:
    """Judge F's features of 200 real digits, and of 300 that are noisy."""
    judge = Judge(JUDGES / "mnist" / "features.onnx")
    real = load_dataset("mnist", SAMPLE, verify=False)
    noise = np.random.default_rng(0).integers(0, 60, (300, 28, 28), dtype=np.uint8)
    noisy = np.maximum(real.train.images[:300], noise)
    return judge.features(real.test.images[:, None]), judge.features(noisy[:, None])


def normal_clouds() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    return random.normal(size=(300, 16)), random.normal(size=(250, 16)) * 0.9 + 0.2


def lattice_points() -> tuple[np.ndarray, np.ndarray]:
    """Many points on the rim of a ball, many equal points."""
    return tuple(np.random.default_rng(2).integers(0, 4, (2, 200, 3)).astype(np.float64))


Clouds = Callable[[], tuple[np.ndarray, np.ndarray]]
CLOUDS: list[Clouds] = [judged_digits, normal_clouds]


@pytest.mark.parametrize("clouds", CLOUDS)
def test_frechet_distance_equals_torch_fidelity(clouds: Clouds) -> None:
    a, b = (cloud.astype(np.float64) for cloud in clouds())
    statistics = [fid_features_to_statistics(torch.from_numpy(cloud)) for cloud in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("clouds", CLOUDS)
def test_kernel_distance_equals_torch_fidelity(clouds: Clouds) -> None:
    a, b = (cloud.astype(np.float64) for cloud in clouds())
    settings = {"kid_subsets": 30, "kid_subset_size": 100, "rng_seed": 5, "verbose": False}
    theirs = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **settings)
    # Their subsets, drawn as they draw them: then the estimates are equal.
    random = np.random.RandomState(5)
    estimates = [
        squared_mmd(
            a[random.choice(len(a), 100, replace=False)],
            b[random.choice(len(b), 100, replace=False)],
        )
        for _ in range(30)
    ]
    mean, std = (theirs[f"kernel_inception_distance_{name}"] for name in ("mean", "std"))
    assert np.mean(estimates) == pytest.approx(mean, rel=1e-9)
    assert np.std(estimates) == pytest.approx(std, rel=1e-9)
    # Our own subsets: then they are equal up to the draw.
    ours = kernel_distance(a, b, num_subsets=30, subset_size=100, seed=5)
    assert ours.mean == pytest.approx(mean, abs=4 * std / np.sqrt(30))
    assert ours.std == pytest.approx(std, rel=0.6)


@pytest.mark.parametrize("clouds", [*CLOUDS, lattice_points])
@pytest.mark.parametrize("k", [1, 5])
def test_precision_recall_density_and_coverage_equal_prdc(clouds: Clouds, k: int) -> None:
    real, generated = (cloud.astype(np.float64) for cloud in clouds())
    with contextlib.redirect_stdout(io.StringIO()):  # it prints N and M
        theirs = compute_prdc(real, generated, nearest_k=k)
    ours = vars(manifold_metrics(real, generated, k))
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert all(value > 0 for value in ours.values())
