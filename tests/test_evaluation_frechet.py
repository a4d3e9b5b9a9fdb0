"""evaluation.frechet: the distance, against independent arithmetic."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from evaluation.frechet import frechet_distance


def clouds(seed: int, dimensions: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    mix = random.normal(size=(dimensions, dimensions))
    a = random.normal(size=(400, dimensions)) @ mix
    b = random.normal(size=(300, dimensions)) * 1.7 + 0.4
    return a, b


def test_it_equals_the_formula_with_a_matrix_square_root() -> None:
    a, b = clouds(0)
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(covariance_a @ covariance_b))
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(covariance_a + covariance_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_it_is_zero_from_a_cloud_to_itself_and_symmetric() -> None:
    a, b = clouds(1)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_a_shifted_cloud_is_its_squared_shift_away() -> None:
    a, _ = clouds(2)
    assert frechet_distance(a + 0.5, a) == pytest.approx(0.25 * a.shape[1], rel=1e-9)


def test_fewer_points_than_dimensions_give_a_finite_distance() -> None:
    random = np.random.default_rng(3)
    few, many = random.normal(size=(5, 40)), random.normal(size=(100, 40))
    assert 0 < frechet_distance(few, many) < np.inf
