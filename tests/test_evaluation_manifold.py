"""evaluation.manifold: the four shares, against their definitions, and the corners of them."""

import numpy as np
import pytest

from evaluation import manifold
from evaluation.manifold import Manifold, manifold_metrics, on_unit_sphere


def clouds(n: int = 60, m: int = 50, dimensions: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(n, dimensions)), random.normal(size=(m, dimensions)) * 0.8 + 0.3


def by_definition(real: np.ndarray, generated: np.ndarray, k: int) -> Manifold:
    def radius(cloud: np.ndarray, i: int) -> float:
        others = np.delete(cloud, i, axis=0)
        return float(np.sort(np.linalg.norm(others - cloud[i], axis=1))[k - 1])

    real_radii = [radius(real, i) for i in range(len(real))]
    generated_radii = [radius(generated, i) for i in range(len(generated))]
    distance = np.array([[np.linalg.norm(x - y) for y in generated] for x in real])
    in_real = distance < np.array(real_radii)[:, None]
    in_generated = distance < np.array(generated_radii)
    return Manifold(
        precision=float(np.mean(in_real.any(axis=0))),
        recall=float(np.mean(in_generated.any(axis=1))),
        density=float(in_real.sum() / (k * len(generated))),
        coverage=float(np.mean(in_real.any(axis=1))),
    )


@pytest.mark.parametrize("k", [1, 5])
def test_the_four_are_their_definitions_point_by_point(k: int) -> None:
    real, generated = clouds()
    measured, expected = manifold_metrics(real, generated, k), by_definition(real, generated, k)
    assert measured == expected


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = clouds()
    whole = manifold_metrics(real, generated)
    monkeypatch.setattr(manifold, "_DISTANCES_AT_ONCE", 170)
    assert manifold_metrics(real, generated) == whole


def test_a_cloud_lies_in_itself() -> None:
    real, _ = clouds()
    assert manifold_metrics(real, real) == Manifold(1.0, 1.0, 1.0, 1.0)


def test_clouds_far_apart_share_nothing() -> None:
    real, generated = clouds()
    assert manifold_metrics(real, generated + 100) == Manifold(0.0, 0.0, 0.0, 0.0)


def test_samples_at_a_few_real_points_are_precise_and_dense_but_cover_little() -> None:
    random = np.random.default_rng(1)
    real = random.normal(size=(500, 4))
    centre = real[np.argsort(np.linalg.norm(real, axis=1))[:20]]
    collapsed = np.repeat(centre, 25, axis=0) + 1e-3 * random.normal(size=(500, 4))
    measured = manifold_metrics(real, collapsed)
    assert measured.precision == 1.0
    assert measured.density > 1.1
    assert measured.coverage < 0.5
    assert measured.recall < 0.1


def test_equal_distributions_have_density_one_and_the_coverage_that_k_makes() -> None:
    random = np.random.default_rng(2)
    real, generated = random.normal(size=(2, 2000, 3))
    measured = manifold_metrics(real, generated, k=5)
    assert measured.density == pytest.approx(1, abs=0.05)
    assert measured.coverage == pytest.approx(1 - 2.0**-5, abs=0.015)


def test_far_from_the_origin_neighbours_are_told_apart_all_the_same() -> None:
    real, generated = (np.round(cloud * 2**12) / 2**12 for cloud in clouds())
    assert manifold_metrics(real + 2**20, generated + 2**20) == manifold_metrics(real, generated)


def test_a_ball_around_copies_is_empty() -> None:
    real, _ = clouds()
    copies = np.repeat(real[:1], 50, axis=0)
    measured = manifold_metrics(real, copies, k=5)
    assert (measured.precision, measured.recall) == (1.0, 0.0)


def test_on_the_sphere_every_length_is_one_but_zero() -> None:
    features = np.array([[3, 4], [0, 0], [-2e-30, 0]], np.float32)
    assert on_unit_sphere(features) == pytest.approx(np.array([[0.6, 0.8], [0, 0], [-1, 0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0; legal: at least 1"),
        ({"k": 50}, "number of generated is 50; legal: at least 51"),
        ({"real": np.zeros((0, 4))}, "number of real is 0; legal: at least 6"),
        ({"real": np.zeros((60, 3))}, "width of generated is 4; legal: 3, as real"),
        ({"generated": np.full((50, 4), np.inf)}, "generated is not finite"),
        ({"generated": np.zeros((50, 2, 2))}, r"generated is of shape \[50, 2, 2\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict, message: str) -> None:
    real, generated = clouds()
    with pytest.raises(ValueError, match=message):
        manifold_metrics(**{"real": real, "generated": generated} | change)
