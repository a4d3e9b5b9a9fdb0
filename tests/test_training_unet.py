"""The U-Net: where it starts, what it looks at, and what it costs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion.schedule import cosine_schedule
from tests.tiny_training import tiny_model_config, tiny_trainer
from training.config import PRESETS
from training.model import DiffusionModel
from training.unet import ResidualBlock, SelfAttention, UNet

SHAPES: list[dict[str, Any]] = [
    {},
    {"widths": (16, 32, 48)},
    {"attention": False},
    {"image_channels": 3, "image_size": 32},
    {"blocks_per_resolution": 2, "middle_blocks": 2},
    {"dropout": 0.5},
    {"patch_size": 2},
    {"patch_size": 2, "image_channels": 3, "image_size": 32, "prediction": "v"},
    {"prediction": "v"},
    {"prediction": "residual_eps"},
]
SCHEDULE = cosine_schedule(1000)


def inputs(batch: int, channels: int = 1, size: int = 28) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(batch, channels, size, size, generator=generator)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    return x_t, t, torch.arange(batch) % 11


def randomise(module: torch.nn.Module) -> None:
    """As after training: nothing is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_convolution_of_a_fresh_model_gives_zero(shape: dict[str, Any]) -> None:
    config = tiny_model_config(**shape)
    x_t, t, label = inputs(3, config.image_channels, config.image_size)
    eps = DiffusionModel(config, SCHEDULE)(x_t, t, label)
    assert eps.shape == x_t.shape
    # eps = sigma x_t + alpha v, with v = 0
    sigma = torch.tensor(SCHEDULE.sigma, dtype=torch.float32)[t, None, None, None]
    expected = torch.zeros_like(x_t) if config.prediction == "eps" else sigma * x_t
    torch.testing.assert_close(eps, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_parameter_takes_part(shape: dict[str, Any]) -> None:
    config = tiny_model_config(**shape)
    model = DiffusionModel(config, SCHEDULE)
    randomise(model)
    model(*inputs(22, config.image_channels, config.image_size)).square().mean().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_blocks_start_as_the_identity() -> None:
    x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, 12)
    assert torch.equal(ResidualBlock(16, 16, 12, groups=8, dropout=0.0)(x, emb), x)
    assert torch.equal(SelfAttention(16, head_width=8, groups=8)(x), x)


def test_a_block_scales_and_shifts_by_the_embedding_before_its_second_convolution() -> None:
    block = ResidualBlock(16, 16, 12, groups=8, dropout=0.0)
    randomise(block)
    seen: list[Tensor] = []
    block.dropout.register_forward_hook(lambda _module, arguments, _out: seen.append(arguments[0]))
    x, emb = torch.randn(1, 16, 8, 8), torch.randn(1, 12)
    with torch.no_grad():
        block(x, emb)
        h = block.norm_out(block.conv_in(torch.nn.functional.silu(block.norm_in(x))))
        scale, shift = block.film(emb)[0, :16], block.film(emb)[0, 16:]
        modulated = h * (1 + scale.reshape(16, 1, 1)) + shift.reshape(16, 1, 1)
    torch.testing.assert_close(seen[0], modulated * torch.sigmoid(modulated))


def test_attention_is_a_softmax_of_scaled_products_per_head() -> None:
    channels, head_width, size = 16, 8, 3
    attention = SelfAttention(channels, head_width, groups=8)
    randomise(attention)
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        actual = attention(x)
        qkv = attention.qkv(attention.norm(x)).reshape(2, 3, 2, head_width, size * size)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        scores = torch.einsum("bhci,bhcj->bhij", q, k) / head_width**0.5
        mixed = torch.einsum("bhij,bhcj->bhci", scores.softmax(dim=-1), v)
        expected = x + attention.projection(mixed.reshape(2, channels, size, size))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("prediction", "of_network"), [("v", SCHEDULE.alpha), ("residual_eps", 1)])
def test_eps_is_made_of_x_t_and_what_the_last_convolution_gives(
    prediction: str, of_network: Any
) -> None:
    """Where v = alpha eps - sigma x_0 is right, so is eps: Salimans and Ho 2022, appendix D."""
    model = DiffusionModel(tiny_model_config(prediction=prediction), SCHEDULE).eval()
    nn.init.zeros_(model.unet.conv_out.weight)
    nn.init.constant_(model.unet.conv_out.bias, 0.3)  # so v, or the residual, is 0.3 everywhere
    x_t, t, label = inputs(5)
    with torch.no_grad():
        eps = model(x_t, t, label).double().numpy()
    sigma = SCHEDULE.sigma[t.numpy(), None, None, None]
    scale = np.broadcast_to(of_network, 1000)[t.numpy(), None, None, None]
    np.testing.assert_allclose(eps, sigma * x_t.numpy() + 0.3 * scale, rtol=1e-5, atol=1e-6)


def test_a_patch_is_a_square_of_neighbouring_pixels() -> None:
    unet = UNet(tiny_model_config(patch_size=2, attention=False)).eval()
    seen: list[Tensor] = []
    unet.conv_in.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    x_t = torch.zeros(1, 1, 28, 28)
    x_t[0, 0, 5, 9] = 1
    with torch.no_grad():
        unet(x_t, torch.zeros(1, 16))
    assert seen[0].shape == (1, 4, 14, 14)
    assert seen[0][0, :, 2, 4].tolist() == [0, 0, 0, 1]  # row 5 is odd, column 9 is odd
    assert seen[0].sum() == 1


def test_a_row_does_not_depend_on_the_others() -> None:
    model = DiffusionModel(tiny_model_config(), SCHEDULE).eval()
    randomise(model)
    x_t, t, label = inputs(5)
    with torch.no_grad():
        together = model(x_t, t, label)
        for i in range(5):
            alone = model(x_t[i : i + 1], t[i : i + 1], label[i : i + 1])
            torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)


def test_a_pixel_of_the_prediction_sees_the_whole_image() -> None:
    unet = UNet(tiny_model_config()).eval()
    randomise(unet)
    x_t = torch.zeros(1, 1, 28, 28, requires_grad=True)
    unet(x_t, torch.randn(1, 16))[0, 0, 0, 0].backward()
    assert x_t.grad is not None
    assert x_t.grad.abs().min() > 0


def test_the_label_and_null_matter_after_a_few_train_steps(tmp_path: Any) -> None:
    trainer = tiny_trainer(tmp_path, learning_rate=5e-3, label_dropout=0.3)
    for _ in range(10):
        trainer.run_train_step()
    x_t = torch.randn(1, 1, 14, 14).expand(11, -1, -1, -1)
    with torch.no_grad():
        eps = trainer.model(x_t, torch.full((11,), 500), torch.arange(11))
    distances = torch.cdist(eps.flatten(1), eps.flatten(1)) + torch.eye(11)
    assert distances.min() > 1e-3


@pytest.mark.parametrize(
    ("preset", "multiply_adds"), [("tiny", 33e6), ("small", 53e6), ("base", 131e6)]
)
def test_a_network_call_of_a_preset_costs_what_is_written(
    preset: str, multiply_adds: float
) -> None:
    model = DiffusionModel(PRESETS[preset].model, SCHEDULE).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs(1))
    assert counter.get_total_flops() / 2 == pytest.approx(multiply_adds, rel=0.02)
