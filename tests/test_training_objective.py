"""What one train step minimises, and the random numbers that it is made of."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from diffusion.schedule import cosine_schedule
from tests.tiny_training import tiny_config, tiny_trainer
from training.config import TrainConfig
from training.model import DiffusionModel
from training.objective import DiffusionLoss, Draw, draw, loss_weights
from training.unet import ResidualBlock

CPU = torch.device("cpu")
NULL = 10


def draws_config(**changes: Any) -> TrainConfig:
    return tiny_config(Path("unused"), image_size=2, **changes)


class Recorder(nn.Module):
    """Predicts a fixed eps and keeps what it was asked."""

    def __init__(self, eps: Tensor) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.asked = x_t, t, label
        return self.eps


def test_a_draw_depends_on_seed_and_train_step_alone() -> None:
    config = draws_config(batch_size=16)

    def all_of(random: Draw) -> list[Any]:
        return [getattr(random, field.name).tolist() for field in dataclasses.fields(random)]

    first = draw(config, 3, CPU)
    torch.rand(5)  # moves the shared generator, which plays no part
    assert all_of(draw(config, 3, CPU)) == all_of(first)
    for other in (
        draw(config, 4, CPU),
        draw(dataclasses.replace(config, seed=1), 3, CPU),
    ):
        assert not torch.equal(other.eps, first.eps)
        assert not torch.equal(other.t, first.t)


def test_stratified_t_has_one_in_each_stratum() -> None:
    config = draws_config(batch_size=50, num_train_timesteps=1000)
    for step in range(1, 200):
        assert torch.equal(draw(config, step, CPU).t // 20, torch.arange(50))


def test_uniform_t_is_not_stratified() -> None:
    config = draws_config(batch_size=50, t_sampling="uniform")
    assert not torch.equal(draw(config, 1, CPU).t // 20, torch.arange(50))


@pytest.mark.parametrize("t_sampling", ["uniform", "stratified"])
def test_t_is_uniform_over_all_timesteps(t_sampling: str) -> None:
    config = draws_config(
        batch_size=7, num_train_timesteps=40, t_sampling=t_sampling, sample_num_steps=1
    )
    t = torch.cat([draw(config, step, CPU).t for step in range(1, 3001)])
    assert t.dtype == torch.int64
    counts = torch.bincount(t, minlength=40)
    assert counts.numel() == 40
    # Stratified counts vary less than multinomial ones, so an upper bound alone is right for both.
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("t_sampling", ["uniform", "stratified"])
def test_t_never_reaches_the_number_of_timesteps(
    t_sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 1.0 - 2.0**-24

    def rand(size: int, **_: object) -> Tensor:
        return torch.full((size,), largest)

    monkeypatch.setattr(torch, "rand", rand)
    config = draws_config(batch_size=128, num_train_timesteps=100_000, t_sampling=t_sampling)
    assert draw(config, 1, CPU).t.max() == 99_999


def test_eps_is_standard_normal() -> None:
    config = draws_config(batch_size=64)
    eps = torch.cat([draw(config, step, CPU).eps for step in range(1, 201)]).flatten()
    assert stats.kstest(eps.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_asked_share_of_labels_is_dropped(share: float) -> None:
    config = draws_config(batch_size=100, label_dropout=share)
    dropped = torch.cat([draw(config, step, CPU).drop_label for step in range(1, 201)])
    five_sigma = 5 * (share * (1 - share) / dropped.numel()) ** 0.5
    assert dropped.float().mean().item() == pytest.approx(share, abs=five_sigma)


def test_the_network_sees_x_t_t_and_the_label_or_null() -> None:
    torch.manual_seed(0)
    schedule = cosine_schedule(1000)
    x_0 = torch.rand(4, 1, 3, 3) * 2 - 1
    random = Draw(
        torch.tensor([0, 1, 500, 999]),
        torch.randn(4, 1, 3, 3),
        torch.tensor([False, True, False, True]),
    )
    network = Recorder(torch.zeros_like(x_0))
    DiffusionLoss(network, schedule, draws_config())(x_0, torch.tensor([3, 4, 5, 6]), random)
    x_t, t, label = network.asked
    assert torch.equal(t, random.t)
    assert label.tolist() == [3, NULL, 5, NULL]
    for i, timestep in enumerate(random.t.tolist()):
        abar = schedule.alphas_cumprod[timestep]
        expected = abar**0.5 * x_0[i].double() + (1 - abar) ** 0.5 * random.eps[i].double()
        torch.testing.assert_close(x_t[i].double(), expected, rtol=0, atol=1e-6)


def test_the_loss_is_the_mean_squared_error_of_eps() -> None:
    torch.manual_seed(0)
    eps, prediction = torch.randn(2, 5, 1, 4, 4)
    random = Draw(torch.arange(5), eps, torch.zeros(5, dtype=torch.bool))

    def loss_of(predicted: Tensor) -> float:
        network = Recorder(predicted)
        loss = DiffusionLoss(network, cosine_schedule(1000), draws_config())
        return float(loss(torch.zeros_like(eps), torch.zeros(5, dtype=torch.int64), random))

    assert loss_of(eps) == 0.0
    expected = ((prediction.double() - eps.double()) ** 2).mean().item()
    assert loss_of(prediction) == pytest.approx(expected, rel=1e-6)
    assert loss_of(prediction.bfloat16()) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("weighting", ["eps", "min_snr", "soft_v", "v"])
def test_an_error_on_v_weighs_as_its_paper_says(weighting: str) -> None:
    """Of a network whose error on v is 1 everywhere, so that that on eps is alpha^2."""
    schedule = cosine_schedule(1000)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    on_v = {
        "eps": schedule.alphas_cumprod,  # plain error on eps
        "min_snr": np.minimum(snr, 5) / (snr + 1),  # Hang et al. 2023, section 3.4, of v
        "soft_v": np.sqrt(schedule.alphas_cumprod),
        "v": np.ones(1000),  # plain error on v
    }[weighting]
    weights = loss_weights(weighting, schedule)
    np.testing.assert_allclose(weights * schedule.alphas_cumprod, on_v, rtol=1e-9)


def test_the_loss_weighs_each_image_by_its_noise_level() -> None:
    torch.manual_seed(0)
    config = draws_config(prediction="v", loss_weighting="v")
    schedule, t = cosine_schedule(1000), torch.tensor([10, 500, 900])
    eps, prediction = torch.randn(2, 3, 1, 4, 4)
    random = Draw(t, eps, torch.zeros(3, dtype=torch.bool))
    loss = DiffusionLoss(Recorder(prediction), schedule, config)
    actual = float(loss(torch.zeros_like(eps), torch.zeros(3, dtype=torch.int64), random))
    errors = ((prediction - eps) ** 2).mean((1, 2, 3)).double().numpy()
    expected = np.mean(errors / schedule.alphas_cumprod[t.numpy()])
    assert actual == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_fresh_model_is_about_one(tmp_path: Path) -> None:
    loss = tiny_trainer(tmp_path, batch_size=32).run_train_step().item()
    # The mean of 32 * 14 * 14 squared normals: 1 with a standard deviation of 0.018.
    assert loss == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(("share", "learned"), [(0.0, set(range(10))), (1.0, {NULL})])
def test_null_is_learned_where_labels_are_dropped_and_only_there(
    share: float, learned: set[int]
) -> None:
    config = draws_config(batch_size=20, label_dropout=share)
    model = DiffusionModel(config.model, cosine_schedule(1000))
    nn.init.normal_(model.unet.conv_out.weight)
    for block in model.unet.middle:
        assert isinstance(block, ResidualBlock)
        nn.init.normal_(block.conv_out.weight)
    loss = DiffusionLoss(model, cosine_schedule(1000), config)
    loss(torch.zeros(20, 1, 2, 2), torch.arange(20) % 10, draw(config, 1, CPU)).backward()
    gradient = model.embedding.label.weight.grad
    assert gradient is not None
    assert set(gradient.any(dim=1).nonzero().flatten().tolist()) == learned
