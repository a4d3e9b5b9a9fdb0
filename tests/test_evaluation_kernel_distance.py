"""evaluation.kernel_distance: the estimate, against its definition, and its properties."""

import numpy as np
import pytest

from evaluation.kernel_distance import kernel_distance, squared_mmd


def clouds(n: int = 60, m: int = 40, dimensions: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(n, dimensions)), random.normal(size=(m, dimensions)) * 1.3 + 0.2


def test_the_estimate_is_its_definition_pair_by_pair() -> None:
    a, b = clouds(7, 5)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    within_a = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    within_b = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    between = np.mean([k(x, y) for x in a for y in b])
    assert squared_mmd(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-12)


def test_it_is_unbiased_around_zero_for_equal_distributions() -> None:
    points = np.random.default_rng(1).normal(size=(400, 20, 5))
    estimates = [squared_mmd(pair[:10], pair[10:]) for pair in points]
    standard_error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates)) < 3 * standard_error
    assert np.min(estimates) < 0 < np.max(estimates)


def test_it_grows_with_the_distance_between_clouds() -> None:
    a, b = clouds()
    near, far = (kernel_distance(a, b + shift, subset_size=40).mean for shift in (0.0, 1.0))
    assert 0 < near < far


def test_subsets_of_the_whole_clouds_all_give_the_whole_estimate() -> None:
    a, b = clouds(40, 40)
    distance = kernel_distance(a, b, num_subsets=3, subset_size=40)
    assert distance.mean == pytest.approx(squared_mmd(a, b), rel=1e-9)
    assert distance.std == pytest.approx(0, abs=1e-12)


def test_float32_features_are_compared_in_float64() -> None:
    a, b = (cloud.astype(np.float32) + 100 for cloud in clouds())
    exact = squared_mmd(a.astype(np.float64), b.astype(np.float64))
    assert squared_mmd(a, b) == exact


def test_the_same_seed_gives_the_same_number_and_another_seed_another() -> None:
    a, b = clouds()
    first = kernel_distance(a, b, num_subsets=4, subset_size=10, seed=7)
    assert kernel_distance(a, b, num_subsets=4, subset_size=10, seed=7) == first
    assert kernel_distance(a, b, num_subsets=4, subset_size=10, seed=8) != first
    assert first.std > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset_size": 41}, r"subset_size is 41; legal: 2 \.\. 40"),
        ({"subset_size": 1}, r"subset_size is 1; legal: 2 \.\. 40"),
        ({"num_subsets": 0}, "num_subsets is 0; legal: at least 1"),
        ({"seed": -1}, "seed is -1; legal: at least 0"),
        ({"a": np.zeros((1, 5))}, "number of a is 1; legal: at least 2"),
        ({"a": np.zeros((50, 4))}, "width of b is 5; legal: 4, as a"),
        ({"b": np.zeros(50)}, r"b is of shape \[50\]; legal: \[N, D\]"),
        ({"b": np.full((50, 5), np.nan)}, "b is not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict, message: str) -> None:
    a, b = clouds()
    with pytest.raises(ValueError, match=message):
        kernel_distance(**{"a": a, "b": b, "subset_size": 40} | change)
