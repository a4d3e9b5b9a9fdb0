"""The sample grid: one row per label, drawn by the served mathematics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.reference import sample, to_uint8
from diffusion.samplers import ddpm
from diffusion.schedule import cosine_schedule
from tests.tiny_training import tiny_model_config
from training.model import DiffusionModel
from training.samples import PER_LABEL, draw_samples, save_grid

CPU = torch.device("cpu")


class LabelAsBrightness(DiffusionModel):
    """Its x_0 is a flat image whose brightness is the label."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        schedule = cosine_schedule(50)
        alpha, sigma = (
            torch.tensor(a, dtype=torch.float32)[t, None, None, None]
            for a in (schedule.alpha, schedule.sigma)
        )
        x_0 = (label.float() / 5 - 0.9)[:, None, None, None]
        return (x_t - alpha * x_0) / sigma


def test_the_samples_are_one_row_per_label() -> None:
    model = LabelAsBrightness(tiny_model_config(image_size=4), cosine_schedule(50))
    images = draw_samples(model, cosine_schedule(50), 5, CPU)
    assert images.shape == (10 * PER_LABEL, 1, 4, 4)
    assert images.dtype == np.uint8
    brightness = images.reshape(10, -1).astype(float)
    assert np.allclose(brightness, 127.5 * (np.arange(10)[:, None] / 5 + 0.1), atol=1.0)


def test_the_samples_are_those_of_the_reference_loop_at_seed_zero() -> None:
    torch.manual_seed(0)
    model = DiffusionModel(
        tiny_model_config(num_labels=2, image_size=8), cosine_schedule(50)
    ).eval()
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    schedule = cosine_schedule(50)

    def network(x_t: np.ndarray, t: np.ndarray, label: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(*map(torch.from_numpy, (x_t, t, label))).numpy()

    labels = [0] * PER_LABEL + [1] * PER_LABEL
    expected = to_uint8(sample(network, ddpm(schedule, 3), labels, 0, (1, 8, 8), 2))
    assert np.array_equal(draw_samples(model, schedule, 3, CPU), expected)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_grid_is_tiled_row_by_row_at_twice_the_size(
    tmp_path: Path, channels: int, mode: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 4, 6), dtype=np.uint8)
    save_grid(images, 2, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.format == "PNG"
        assert picture.mode == mode
        pixels = np.asarray(picture).reshape(3 * 4 * 2, 2 * 6 * 2, channels)
    for i in range(5):
        top, left = i // 2 * 8, i % 2 * 12
        tile = pixels[top : top + 8, left : left + 12].transpose(2, 0, 1)
        assert np.array_equal(tile, images[i].repeat(2, axis=1).repeat(2, axis=2))
    assert not pixels[16:, 12:].any()  # the sixth place is empty
