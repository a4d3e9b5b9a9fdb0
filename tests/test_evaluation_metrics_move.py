"""Each metric moves the right way when real digits are spoilt in a way that it is there to notice.

The reference is 500 training digits of the sample, what is judged its 200 test digits.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from evaluation.denoising_error import denoising_error, load_network, mean_denoising_error
from evaluation.frechet import frechet_distance
from evaluation.judge import JUDGES, Judge
from evaluation.kernel_distance import kernel_distance
from evaluation.manifold import Manifold, manifold_metrics, on_unit_sphere
from evaluation.memorisation import memorisation
from evaluation.reference_images import class_gaussians, uniform_noise
from training.datasets import Dataset, load_dataset

SAMPLE = Path(__file__).parent / "data" / "mnist-sample"
MODEL = Path(__file__).parent.parent / "models" / "mnist"

Features = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def real() -> Dataset:
    return load_dataset("mnist", SAMPLE, verify=False)


@pytest.fixture(scope="module")
def digits(real: Dataset) -> np.ndarray:
    return real.test.images[:, None]


@pytest.fixture(scope="module")
def features() -> Features:
    return Judge(JUDGES / "mnist" / "features.onnx").features


@pytest.fixture(scope="module")
def reference(real: Dataset, features: Features) -> np.ndarray:
    return features(real.train.images[:, None])


@pytest.fixture(scope="module")
def manifold(features: Features, reference: np.ndarray) -> Callable[[np.ndarray], Manifold]:
    def measure(images: np.ndarray) -> Manifold:
        return manifold_metrics(on_unit_sphere(reference), on_unit_sphere(features(images)))

    return measure


def noised(images: np.ndarray, strength: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(scale=strength, size=images.shape)
    return np.rint(np.clip(images + noise, 0, 255)).astype(np.uint8)


def blurred(images: np.ndarray, pixels: float) -> np.ndarray:
    return np.rint(gaussian_filter(images.astype(float), (0, 0, pixels, pixels))).astype(np.uint8)


def one_mode_per_class(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Every image is its class's first one, but for a little noise."""
    first = np.array([np.flatnonzero(labels == label)[0] for label in range(10)])
    return noised(images[first[labels]], 3)


def test_frechet_and_kernel_distance_grow_with_noise_blur_and_lost_modes(
    real: Dataset, digits: np.ndarray, features: Features, reference: np.ndarray
) -> None:
    def distances(images: np.ndarray) -> np.ndarray:
        spoilt = features(images)
        kernel = kernel_distance(spoilt, reference, num_subsets=20, subset_size=150)
        return np.array([frechet_distance(spoilt, reference), kernel.mean])

    clean = distances(digits)
    for spoilt in (
        [noised(digits, strength) for strength in (40, 80)],
        [blurred(digits, pixels) for pixels in (1.0, 2.0)],
        [one_mode_per_class(digits, real.test.labels)],
    ):
        previous = 1.3 * clean
        for images in spoilt:
            assert (distances(images) > previous).all()
            previous = distances(images)


def test_noise_and_blur_lower_precision_and_density(
    digits: np.ndarray, manifold: Callable[[np.ndarray], Manifold]
) -> None:
    clean = manifold(digits)
    for images in (noised(digits, 80), blurred(digits, 2.0)):
        spoilt = manifold(images)
        assert spoilt.precision < clean.precision - 0.1
        assert spoilt.density < 0.8 * clean.density


def test_lost_modes_lower_recall_and_coverage_but_not_precision(
    real: Dataset, digits: np.ndarray, manifold: Callable[[np.ndarray], Manifold]
) -> None:
    clean, collapsed = manifold(digits), manifold(one_mode_per_class(digits, real.test.labels))
    assert collapsed.recall < 0.2 * clean.recall
    assert collapsed.coverage < 0.5 * clean.coverage
    assert collapsed.precision > clean.precision - 0.15
    half_of_the_classes = manifold(digits[real.test.labels < 5])
    assert half_of_the_classes.recall < 0.8 * clean.recall
    assert half_of_the_classes.coverage < 0.8 * clean.coverage


def test_crude_models_are_far_from_the_floor(
    real: Dataset,
    digits: np.ndarray,
    features: Features,
    reference: np.ndarray,
    manifold: Callable[[np.ndarray], Manifold],
) -> None:
    sets = (
        digits,
        class_gaussians(real.train, real.test.labels, seed=0),
        uniform_noise(200, (28, 28), seed=0),
    )
    floor, crude, noise = (frechet_distance(features(images), reference) for images in sets)
    assert 1.5 * floor < crude < noise
    of_digits, of_crude, of_noise = (manifold(images) for images in sets)
    assert of_digits.precision > of_crude.precision > of_noise.precision
    assert of_digits.density > of_crude.density > of_noise.density
    assert of_noise.density < 0.5 * of_digits.density
    assert of_noise.coverage < 0.7 * of_digits.coverage


def test_wrong_labels_and_strong_noise_lower_label_accuracy(
    real: Dataset, digits: np.ndarray
) -> None:
    read = Judge(JUDGES / "mnist" / "labels-1.onnx").predict
    labels = real.test.labels
    tenth_wrong = np.where(np.arange(200) % 10 == 0, (labels + 1) % 10, labels)
    right, wrong = np.mean(read(digits) == labels), np.mean(read(digits) == tenth_wrong)
    assert right > 0.97
    assert wrong == pytest.approx(right - 0.1, abs=0.02)
    assert np.mean(read(noised(digits, 150)) == labels) < right - 0.1


def test_training_images_among_samples_lower_the_ratio_and_raise_the_share(
    real: Dataset, digits: np.ndarray
) -> None:
    train = real.train.images[:, None]
    half, other_half = digits[::2], digits[1::2]
    ratios, shares = [], []
    for copies in (0, 30, 60, 100):
        samples = np.concatenate([noised(train[:copies], 3), half[copies:]])
        measured = memorisation(samples, other_half, train, progress=False)
        ratios.append(measured.median_ratio)
        shares.append(measured.share_below_first_percentile)
        nearest_first = measured.closest[: min(copies, 20)]
        assert (nearest_first < copies).all()
        assert np.array_equal(measured.closest_rows[: len(nearest_first)], nearest_first)
    assert ratios[0] == pytest.approx(1, abs=0.15)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 0.3
    assert shares[0] < 0.06
    assert shares == pytest.approx([0, 0.3, 0.6, 1], abs=0.06)


def test_the_denoising_error_is_higher_with_less_noise_and_with_wrong_labels(
    real: Dataset, digits: np.ndarray
) -> None:
    model, network = load_network(MODEL, "cpu")
    images, labels = digits[:60], real.test.labels[:60].astype(np.int64)
    timesteps = [100, 500, 900]

    def errors(given: np.ndarray) -> np.ndarray:
        return denoising_error(model, network, images, given, timesteps=timesteps, progress=False)

    right, wrong = errors(labels), errors((labels + 1) % 10)
    no_label = errors(np.full(60, model.null_label))
    assert right[0] > right[1] > right[2] > 0
    assert (right < wrong).all()
    assert right[1] < no_label[1] < wrong[1]
    assert right[2] < mean_denoising_error(model, network, images, labels, progress=False) < 0.2


def test_the_denoising_error_is_higher_on_what_the_model_has_not_learned(
    real: Dataset, digits: np.ndarray
) -> None:
    model, network = load_network(MODEL, "cpu")
    labels = real.test.labels[:60].astype(np.int64)
    error = mean_denoising_error(model, network, digits[:60], labels, progress=False)
    upside_down = np.ascontiguousarray(digits[:60, :, ::-1])
    assert mean_denoising_error(model, network, upside_down, labels, progress=False) > 1.2 * error
