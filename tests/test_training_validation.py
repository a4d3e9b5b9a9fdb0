"""What the EMA weights are worth during a run: the same yardstick every time."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.schedule import cosine_schedule
from evaluation.denoising_error import mean_denoising_error
from serving.engine_model import EngineModel
from tests.tiny_training import small_digits, tiny_config
from training.datasets import Split
from training.model import DiffusionModel
from training.validation import HELD_OUT_IMAGES, HeldOut, Validation

CPU = torch.device("cpu")
SCHEDULE = cosine_schedule(1000)


class SaysNothing(nn.Module):
    """Predicts eps as zero."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x_t)


class KnowsTheImage(nn.Module):
    """Predicts eps from one image that all of them are."""

    def __init__(self, image: np.ndarray) -> None:
        super().__init__()
        self.x_0 = torch.tensor(image, dtype=torch.float32) / 127.5 - 1
        self.labels: list[int] = []

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        self.labels += label.tolist()
        alpha, sigma = (
            torch.tensor(a, dtype=torch.float32)[t, None, None, None]
            for a in (SCHEDULE.alpha, SCHEDULE.sigma)
        )
        return (x_t - alpha * self.x_0) / sigma


class WrongAtOneLevel(SaysNothing):
    """Off by 3 where t is in the third quarter, and right elsewhere, but for the noise itself."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        wrong = ((t >= 500) & (t < 750)).float()[:, None, None, None]
        return 3 * wrong * torch.ones_like(x_t)


def held_out(count: int = 130) -> HeldOut:
    test = small_digits().test
    return HeldOut(Split(test.images[:count], test.labels[:count]), SCHEDULE, CPU)


def test_a_network_that_says_nothing_has_an_error_of_one() -> None:
    errors = held_out().errors(SaysNothing())
    assert errors.shape == (130,)
    assert errors.mean() == pytest.approx(1.0, abs=0.02)
    assert errors.std() < 0.2


def test_a_network_that_knows_the_image_has_none_and_sees_the_labels() -> None:
    image = small_digits().test.images[0]
    labels = np.arange(130).astype(np.uint8) % 10
    model = KnowsTheImage(image)
    errors = HeldOut(Split(np.stack([image] * 130), labels), SCHEDULE, CPU).errors(model)
    assert errors.max() < 1e-6
    assert model.labels == labels.tolist()


def test_timesteps_are_spread_evenly_and_dealt_at_random() -> None:
    timesteps = held_out(100).timesteps
    assert sorted(timesteps) == list(range(5, 1000, 10))
    assert abs(np.corrcoef(timesteps, np.arange(100))[0, 1]) < 0.3


def test_every_measurement_is_the_same_to_the_bit() -> None:
    assert np.array_equal(held_out().errors(SaysNothing()), held_out().errors(SaysNothing()))


def test_the_error_is_the_one_that_evaluation_reports_of_the_exported_network() -> None:
    torch.manual_seed(0)
    config = tiny_config(Path("run")).model
    model = DiffusionModel(config, SCHEDULE).eval().requires_grad_(False)
    nn.init.normal_(model.unet.get_parameter("conv_out.weight"), std=0.1)
    table = torch.stack(
        [model.embedding(torch.arange(1000), torch.full((1000,), label)) for label in range(11)], 1
    )
    engine_model = EngineModel((1, 14, 14), 10, SCHEDULE, table.numpy())

    def network(x_t: np.ndarray, emb: np.ndarray) -> np.ndarray:
        output: np.ndarray = model.unet(torch.tensor(x_t), torch.tensor(emb)).numpy()
        return output

    test = small_digits().test
    expected = mean_denoising_error(
        engine_model, network, test.images[:130, None], test.labels[:130], progress=False
    )
    assert held_out().errors(model).mean() == pytest.approx(expected, rel=1e-5)


def measure(model: nn.Module, **changes: Any) -> dict[str, float]:
    config = tiny_config(Path("run"), **changes)
    return Validation(config, small_digits(), SCHEDULE, CPU, None).measure(model)


def test_quarters_of_the_noise_levels_are_told_apart() -> None:
    figures = measure(WrongAtOneLevel())
    quarters = [figures[f"validation_eps_mse_quarter_{i}"] for i in (1, 2, 3, 4)]
    assert quarters == pytest.approx([1.0, 1.0, 10.0, 1.0], rel=0.05)
    assert figures["validation_eps_mse"] == pytest.approx(sum(quarters) / 4, rel=1e-6)


def test_at_most_the_first_images_of_the_test_set_are_taken() -> None:
    split = Split(np.zeros((HELD_OUT_IMAGES + 1, 2, 2), np.uint8), np.zeros(9999, np.uint8))
    assert len(HeldOut(split, SCHEDULE, CPU).timesteps) == HELD_OUT_IMAGES


def test_without_a_judge_no_image_is_drawn() -> None:
    def forbidden(*_: object) -> dict[str, float]:
        raise AssertionError

    config = tiny_config(Path("run"), validate_num_images=0)
    Validation(config, small_digits(), SCHEDULE, CPU, forbidden).measure(SaysNothing())


def test_an_error_that_is_not_a_number_is_reported_and_nothing_drawn() -> None:
    class Broken(SaysNothing):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return x_t * math.nan

    def forbidden(*_: object) -> dict[str, float]:
        raise AssertionError

    config = tiny_config(Path("run"), validate_num_images=10)
    figures = Validation(config, small_digits(), SCHEDULE, CPU, forbidden).measure(Broken())
    assert math.isnan(figures["validation_eps_mse"])
