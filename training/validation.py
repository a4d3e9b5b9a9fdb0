"""How good the EMA weights are while a run goes on, by the same yardstick every time."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from diffusion.noise import standard_normal
from diffusion.schedule import Schedule
from training.config import TrainConfig
from training.datasets import Dataset, Split
from training.model import DiffusionModel
from training.samples import draw_images

Judge = Callable[[NDArray[np.uint8], NDArray[np.int64]], dict[str, float]]
"""(images uint8 [N, C, H, W], the labels that were asked for int64 [N]) -> figures by name."""

HELD_OUT_IMAGES = 2000
"""Test images that the error is measured on, at most: the first ones."""
JUDGED_NUM_STEPS = 10
"""num_steps of the DDPM that draws the images to be judged."""
_ROWS = 100
_SEED = 0


class HeldOut:
    """Held-out images, each with its noise at its timestep.

    Timesteps are spread evenly over 0 .. T-1 and dealt to the images at random, so that one row of
    the network per image leaves little variance (Kingma et al. 2021, arXiv:2107.00630, appendix
    I.1). Noise and deal never change, so that differences between two measurements are far more
    certain than the measurements. evaluation.denoising_error measures the same of a bundle.

    Args:
        split: images uint8 [N, H, W] and labels [N]; the first HELD_OUT_IMAGES are taken.
        schedule: the noise levels.
        device: where the network is.
    """

    def __init__(self, split: Split, schedule: Schedule, device: torch.device) -> None:
        count = min(HELD_OUT_IMAGES, len(split.images))
        total = schedule.num_train_timesteps
        spread = (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)
        self.timesteps = np.random.default_rng(_SEED).permutation(spread)
        self._images, self._labels = split.images[:count, None], split.labels[:count]
        self._schedule, self._device = schedule, device

    def errors(self, model: nn.Module) -> NDArray[np.float64]:
        """Squared error of the predicted eps of each image, mean over its pixels: float64 [N].

        Args:
            model: (x_t, t, label) -> eps, on the device, in eval mode.
        """
        alpha, sigma = (
            values.astype(np.float32)[:, None, None, None]
            for values in (self._schedule.alpha, self._schedule.sigma)
        )
        errors = np.empty(len(self._images))
        for start in range(0, len(errors), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(errors)))
            t = self.timesteps[rows]
            x_0 = self._images[rows].astype(np.float32) / 127.5 - 1
            seeds = np.full(len(rows), _SEED, np.uint64)
            eps = standard_normal(seeds, rows, t, x_0[0].size).reshape(x_0.shape)
            x_t = alpha[t] * x_0 + sigma[t] * eps  # Ho et al. Eq. 4
            arrays = (x_t, t, self._labels[rows].astype(np.int64))
            with torch.no_grad():
                predicted = model(*(torch.as_tensor(a, device=self._device) for a in arrays))
            difference = predicted.float().cpu().numpy() - eps
            errors[rows] = np.square(difference, dtype=np.float64).mean(axis=(1, 2, 3))
        return errors


class Validation:
    """What is measured every ``validate_every`` train steps.

    Args:
        config: the run.
        dataset: its test images are the held-out ones.
        schedule: the run's.
        device: where the network is.
        judge: judges generated images; None: nothing is drawn.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        schedule: Schedule,
        device: torch.device,
        judge: Judge | None,
    ) -> None:
        self._held_out = HeldOut(dataset.test, schedule, device)
        self._judge = judge if config.validate_num_images else None
        num_images = np.arange(config.validate_num_images, dtype=np.int64)
        self._labels = num_images % config.model.num_labels
        self._num_steps = min(JUDGED_NUM_STEPS, schedule.num_train_timesteps)
        self._schedule, self._device = schedule, device

    def measure(self, model: DiffusionModel) -> dict[str, float]:
        """Figures of the network with the EMA weights, in eval mode, on the device, in float32.

        Returns:
            validation_eps_mse; validation_eps_mse_quarter_1 .. _4, of the timesteps from the least
            noise to the most; what the judge says, with the same prefix; validation_seconds.
        """
        started = time.perf_counter()
        errors = self._held_out.errors(model)
        figures = {"eps_mse": float(errors.mean())}
        quarter = self._held_out.timesteps * 4 // self._schedule.num_train_timesteps
        for i in range(4):
            if (quarter == i).any():  # fewer than four images, or timesteps, leave some empty
                figures[f"eps_mse_quarter_{i + 1}"] = float(errors[quarter == i].mean())
        if self._judge is not None and math.isfinite(figures["eps_mse"]):
            images = draw_images(model, self._schedule, self._labels, self._num_steps, self._device)
            figures |= self._judge(images, self._labels)
        figures["seconds"] = time.perf_counter() - started
        return {f"validation_{name}": value for name, value in figures.items()}
