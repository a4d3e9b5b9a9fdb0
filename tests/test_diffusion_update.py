"""The reverse step: its formulas, float32 throughout, and lanes that do not touch each other."""

import numpy as np
import numpy.typing as npt
import pytest

from diffusion.update import advance, guide, predict_x_0

N, SHAPE = 5, (2, 3, 4)


def normal(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_predicted_x_0_undoes_the_forward_process() -> None:
    rng = np.random.default_rng(0)
    x_0 = rng.uniform(-1.0, 1.0, (N, *SHAPE))
    eps = rng.standard_normal((N, *SHAPE))
    abar = rng.uniform(0.05, 0.99, N)
    lanes = (N, 1, 1, 1)
    x_t = np.sqrt(abar).reshape(lanes) * x_0 + np.sqrt(1.0 - abar).reshape(lanes) * eps
    found = predict_x_0(x_t, eps, np.sqrt(abar), np.sqrt(1.0 - abar))
    np.testing.assert_allclose(found, x_0, atol=1e-13)


def test_x_0_is_clipped_where_asked() -> None:
    x_t = np.array([[3.0, -3.0, 0.25]], dtype=np.float32)
    zero, one = np.zeros_like(x_t), np.ones(1, dtype=np.float32)
    assert predict_x_0(x_t, zero, one, one).tolist() == [[1.0, -1.0, 0.25]]
    assert predict_x_0(x_t, zero, one, one, clip=2.0).tolist() == [[2.0, -2.0, 0.25]]
    assert predict_x_0(x_t, zero, one, one, clip=None).tolist() == [[3.0, -3.0, 0.25]]


def test_advance_is_the_sum_of_its_four_terms() -> None:
    x_t, x_0, previous, noise = images = [normal(i, N, *SHAPE) for i in range(4)]
    coefficients = normal(4, N, 4)
    x = advance(x_t, x_0, previous, noise, coefficients)
    for lane in range(N):
        expected = sum(
            float(c) * image[lane].astype(np.float64)
            for c, image in zip(coefficients[lane], images, strict=True)
        )
        np.testing.assert_allclose(x[lane], expected, atol=2e-6)


def test_guidance_formula() -> None:
    label, null = normal(0, 3, 2), normal(1, 3, 2)
    eps = guide(label, null, np.array([0.0, 1.0, 3.0], dtype=np.float32))
    np.testing.assert_array_equal(eps[0], null[0])
    np.testing.assert_allclose(eps[1], label[1], atol=1e-6)
    np.testing.assert_allclose(eps[2], 3.0 * label[2] - 2.0 * null[2], atol=2e-6)


def test_arithmetic_stays_in_float32_whatever_the_coefficients_are() -> None:
    x = normal(0, N, *SHAPE)
    double = np.full(N, 0.1)
    single = double.astype(np.float32)
    for wide, narrow in (
        (predict_x_0(x, x, double, double), predict_x_0(x, x, single, single)),
        (guide(x, -x, double), guide(x, -x, single)),
        (
            advance(x, x, x, x, np.full((N, 4), 0.1)),
            advance(x, x, x, x, np.full((N, 4), 0.1, dtype=np.float32)),
        ),
    ):
        assert wide.dtype == narrow.dtype == np.float32
        assert wide.tobytes() == narrow.tobytes()


@pytest.mark.parametrize("lane", range(N))
def test_a_lane_is_the_same_to_the_bit_alone_and_in_a_crowd(lane: int) -> None:
    x_t, eps, previous, noise = (normal(i, N, *SHAPE) for i in range(4))
    alpha = np.linspace(0.1, 0.9, N).astype(np.float32)
    sigma = np.linspace(0.9, 0.2, N).astype(np.float32)
    rows, scale = normal(5, N, 4), normal(6, N)
    one = slice(lane, lane + 1)

    def step(at: slice) -> npt.NDArray[np.float32]:
        guided = guide(eps[at], previous[at], scale[at])
        x_0 = predict_x_0(x_t[at], guided, alpha[at], sigma[at])
        return advance(x_t[at], x_0, previous[at], noise[at], rows[at])

    assert step(slice(None))[one].tobytes() == step(one).tobytes()


def test_nan_stays_in_its_lane() -> None:
    x, ones = normal(0, 2, 3), np.ones(2, dtype=np.float32)
    bad = x.copy()
    bad[0] = np.nan
    x_0 = predict_x_0(x, bad, ones, ones)
    x_next = advance(x, x_0, x, x, np.ones((2, 4), dtype=np.float32))
    assert np.isnan(x_0[0]).all()
    assert np.isnan(x_next[0]).all()
    assert np.isfinite(x_next[1]).all()


def test_arguments_are_left_as_they_were() -> None:
    x = normal(0, N, *SHAPE)
    before = x.tobytes()
    ones = np.ones(N, dtype=np.float32)
    predict_x_0(x, x, ones, ones)
    advance(x, x, x, x, np.ones((N, 4), dtype=np.float32))
    guide(x, x, ones)
    assert x.tobytes() == before
