"""evaluation.denoising_error: the training loss, held out, with the same noise for every model."""

from collections.abc import Callable

import numpy as np
import pytest

from diffusion.noise import standard_normal
from diffusion.schedule import cosine_schedule
from evaluation.denoising_error import denoising_error, mean_denoising_error, spread_timesteps
from serving.engine_model import EngineModel

SHAPE = (1, 4, 6)
T, NULL_LABEL = 40, 3
SCHEDULE = cosine_schedule(T)

Network = Callable[[np.ndarray, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def model() -> EngineModel:
    """The embedding of (t, label) is (alpha_t, sigma_t, label): all that a network could know."""
    table = np.empty((T, NULL_LABEL + 1, 3), np.float32)
    table[:, :, 0] = SCHEDULE.alpha[:, None]
    table[:, :, 1] = SCHEDULE.sigma[:, None]
    table[:, :, 2] = np.arange(NULL_LABEL + 1)
    return EngineModel(SHAPE, NULL_LABEL, SCHEDULE, table)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """230 images, so that the last call of the network is not full, grey as their label says."""
    labels = np.arange(230) % NULL_LABEL
    images = np.broadcast_to((100 * labels)[:, None, None, None], (230, *SHAPE))
    return images.astype(np.uint8), labels


def zero(x_t: np.ndarray, emb: np.ndarray) -> np.ndarray:
    return np.zeros_like(x_t)


def oracle(x_t: np.ndarray, emb: np.ndarray) -> np.ndarray:
    """eps, from what the label says of x_0."""
    alpha, sigma, label = (emb[:, i, None, None, None] for i in range(3))
    return (x_t - alpha * (100 * label / 127.5 - 1)) / sigma


def test_the_error_is_that_of_the_noise_which_the_network_got(
    model: EngineModel, data: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = data
    t, seed = 17, 5

    def half(x_t: np.ndarray, emb: np.ndarray) -> np.ndarray:
        return 0.5 * x_t

    [measured] = denoising_error(model, half, images, labels, timesteps=[t], seed=seed)
    seeds, steps = np.full(230, seed, np.uint64), np.full(230, t)
    eps = standard_normal(seeds, np.arange(230), steps, 24).reshape(-1, *SHAPE)
    x_t = SCHEDULE.alpha[t] * (images / 127.5 - 1) + SCHEDULE.sigma[t] * eps
    assert measured == pytest.approx(np.mean((0.5 * x_t - eps) ** 2), rel=1e-5)


def test_knowing_nothing_costs_one_and_knowing_all_nothing(
    model: EngineModel, data: tuple[np.ndarray, np.ndarray]
) -> None:
    timesteps = [0, 20, T - 1]
    ignorant = denoising_error(model, zero, *data, timesteps=timesteps)
    assert ignorant == pytest.approx(np.ones(3), abs=0.1)
    knowing = denoising_error(model, oracle, *data, timesteps=timesteps)
    assert knowing == pytest.approx(np.zeros(3), abs=1e-8)


def test_each_image_goes_in_with_its_own_label(
    model: EngineModel, data: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = data
    wrong = denoising_error(model, oracle, images, (labels + 1) % NULL_LABEL, timesteps=[0, 20])
    assert (wrong > 0.1).all()
    assert np.isfinite(denoising_error(model, zero, images, np.full(230, 3), timesteps=[0])).all()


def test_a_timestep_is_measured_alike_whatever_else_is(
    model: EngineModel, data: tuple[np.ndarray, np.ndarray]
) -> None:
    together = denoising_error(model, zero, *data, timesteps=[3, 30, 7])
    apart = [denoising_error(model, zero, *data, timesteps=[t])[0] for t in (3, 30, 7)]
    assert together.tolist() == apart
    assert len(set(apart)) == 3
    assert denoising_error(model, zero, *data, timesteps=[3], seed=1)[0] != apart[0]


def test_the_mean_takes_every_timestep_equally_often(
    model: EngineModel, data: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = data
    seen: list[float] = []

    def watch(x_t: np.ndarray, emb: np.ndarray) -> np.ndarray:
        seen.extend(emb[:, 1].tolist())
        return np.zeros_like(x_t)

    mean_denoising_error(model, watch, images[: 5 * T], labels[: 5 * T])
    sigmas, counts = np.unique(np.array(seen, np.float32), return_counts=True)
    assert np.array_equal(sigmas, SCHEDULE.sigma.astype(np.float32))
    assert (counts == 5).all()
    assert seen != sorted(seen), "low noise is not for the first images"


def test_the_mean_is_about_that_over_all_timesteps(
    model: EngineModel, data: tuple[np.ndarray, np.ndarray]
) -> None:
    def half(x_t: np.ndarray, emb: np.ndarray) -> np.ndarray:
        return 0.5 * x_t

    whole = denoising_error(model, half, *data, timesteps=range(T)).mean()
    assert mean_denoising_error(model, half, *data) == pytest.approx(whole, rel=0.1)


def test_timesteps_are_spread_over_middles_of_equal_parts() -> None:
    assert spread_timesteps(1000, 4).tolist() == [125, 375, 625, 875]
    assert spread_timesteps(1000, 1).tolist() == [500]
    assert spread_timesteps(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert spread_timesteps(2, 4).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timesteps": [0, 40]}, r"timesteps is 40; legal: 0 \.\. 39"),
        ({"timesteps": [-1]}, r"timesteps is -1; legal: 0 \.\. 39"),
        ({"timesteps": []}, "number of timesteps is 0; legal: at least 1"),
        ({"labels": np.full(230, 4)}, r"labels is 4; legal: 0 \.\. 3"),
        ({"labels": np.full(230, -1)}, r"labels is -1; legal: 0 \.\. 3"),
        ({"labels": np.zeros(229, int)}, r"labels is int64 \[229\]; legal: integers \[230\]"),
        ({"images": np.zeros((230, 1, 6, 4), np.uint8)}, r"legal: uint8 \[N, 1, 4, 6\]"),
        ({"seed": -1}, r"seed is -1; legal: 0 \.\. 2\^64 - 1"),
        ({"network": lambda x, emb: x * np.nan}, "what the network gave is not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    model: EngineModel, data: tuple[np.ndarray, np.ndarray], change: dict, message: str
) -> None:
    arguments = {"network": zero, "images": data[0], "labels": data[1], "timesteps": [0]} | change
    with pytest.raises(ValueError, match=message):
        denoising_error(model, **arguments)
