"""Training loops over the same network and the same images: ours, and those it is compared with."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.schedule import Schedule
from training.config import TrainConfig
from training.datasets import Dataset
from training.device import Processes, resolve_placement
from training.model import DiffusionModel
from training.schedule import make_schedule
from training.trainer import Trainer


class TrainingLoop(Protocol):
    """One way to train."""

    model: nn.Module

    def step(self) -> None:
        """One train step: a batch, a gradient, an update."""


class OurLoop:
    """training.trainer: `python -m training.train` with its defaults, or compiled."""

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        self._trainer = Trainer(config, dataset, resolve_placement(config), Processes())
        self.model: nn.Module = self._trainer.model
        self.placement = str(self._trainer.placement)

    def step(self) -> None:
        """See TrainingLoop."""
        self._trainer.run_train_step()


class _Images:
    """Batches of images in [-1, 1] and their labels, drawn anew at every step."""

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        images = torch.tensor(dataset.train.images)[:, None]
        self.images = images.float().div_(127.5).sub_(1.0)
        self.labels = torch.tensor(dataset.train.labels).long()
        self.batch_size = config.batch_size

    def dataset(self) -> torch.utils.data.TensorDataset:
        return torch.utils.data.TensorDataset(self.images, self.labels)

    def batches(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader


class PlainLoop:
    """Algorithm 1 as a tutorial has it: float32, AdamW, no clipping, no average of the weights."""

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        torch.manual_seed(config.seed)
        schedule = make_schedule(config)
        self.model: nn.Module = DiffusionModel(config.model, schedule)
        self._alpha = torch.tensor(schedule.alpha, dtype=torch.float32)
        self._sigma = torch.tensor(schedule.sigma, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), config.learning_rate)
        images = _Images(config, dataset)
        self._batches = images.batches(
            torch.utils.data.DataLoader(
                images.dataset(), config.batch_size, shuffle=True, drop_last=True
            )
        )

    def step(self) -> None:
        """See TrainingLoop."""
        x_0, label = next(self._batches)
        t = torch.randint(0, len(self._alpha), (len(x_0),))
        eps = torch.randn_like(x_0)
        x_t = self._alpha[t, None, None, None] * x_0 + self._sigma[t, None, None, None] * eps
        loss = F.mse_loss(self.model(x_t, t, label), eps)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()


class DiffusersLoop:
    """The loop of diffusers' example train_unconditional.py, around our network.

    Accelerate, DDPMScheduler.add_noise, AdamW with a cosine learning rate, clipped gradients, and
    EMAModel, with the example's defaults.

    Args:
        mixed_precision: of Accelerate: "no", the example's default, or "bf16".
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, mixed_precision: str) -> None:
        # Packages of the peers' environment.
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - one per process
        self._accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
        torch.manual_seed(config.seed)
        schedule: Schedule = make_schedule(config)
        network = DiffusionModel(config.model, schedule)
        self._noise = DDPMScheduler(schedule.num_train_timesteps, trained_betas=schedule.betas)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=28125)
        images = _Images(config, dataset)
        loader = torch.utils.data.DataLoader(
            images.dataset(), config.batch_size, shuffle=True, drop_last=True
        )
        self.model, self._optimizer, loader, self._rate = self._accelerator.prepare(
            network, optimizer, loader, rate
        )
        self._ema = EMAModel(
            network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
        )
        self._batches = images.batches(loader)

    def step(self) -> None:
        """See TrainingLoop."""
        x_0, label = next(self._batches)
        eps = torch.randn_like(x_0)
        t = torch.randint(0, self._noise.config.num_train_timesteps, (len(x_0),)).long()
        x_t = self._noise.add_noise(x_0, eps, t)
        with self._accelerator.accumulate(self.model):
            loss = F.mse_loss(self.model(x_t, t, label).float(), eps)
            self._accelerator.backward(loss)
            self._accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()
            self._rate.step()
            self._optimizer.zero_grad()
        self._ema.step(self.model.parameters())
