"""Training loops over the same network and the same images: ours, and those it is compared with."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training_worker import READY
from diffusion.schedule import Schedule
from training.config import TrainConfig
from training.datasets import Dataset
from training.device import Processes, resolve_placement
from training.model import DiffusionModel
from training.schedule import make_schedule
from training.trainer import Trainer


class TrainingLoop(Protocol):
    """One way to train."""

    def run(self, steps: int) -> None:
        """Train steps, each a batch, a gradient and an update."""

    def weights(self) -> dict[str, Tensor]:
        """The state of training.model.DiffusionModel as it is now, without any average."""

    def close(self) -> None:
        """Lets go of what it holds outside this process."""


class _InProcess:
    """What the loops of this process share."""

    def close(self) -> None:
        """See TrainingLoop."""


class OurLoop(_InProcess):
    """training.trainer: `python -m training.train` with its defaults, or compiled."""

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        self._trainer = Trainer(config, dataset, resolve_placement(config), Processes())

    def run(self, steps: int) -> None:
        """See TrainingLoop."""
        for _ in range(steps):
            self._trainer.run_train_step()

    def weights(self) -> dict[str, Tensor]:
        """See TrainingLoop."""
        return self._trainer.model.state_dict()


class OurProcesses:
    """Ours in several processes of one thread each, as torchrun starts them.

    Args:
        preset: of training.config.
        batch_size: of all processes together.
        data_dir: with the images.
        processes: how many, at least 2.
    """

    def __init__(self, preset: str, batch_size: int, data_dir: Path, processes: int) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc-per-node", str(processes), "-m", "benchmarks.training_worker",
                   "--preset", preset, "--batch-size", str(batch_size),
                   "--data-dir", str(data_dir)]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._expect(READY)

    def run(self, steps: int) -> None:
        """See TrainingLoop."""
        self._order(str(steps))

    def weights(self) -> dict[str, Tensor]:
        """See TrainingLoop."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "weights"
            self._order(str(path))
            state: dict[str, Tensor] = torch.load(path, weights_only=True)
            return state

    def close(self) -> None:
        """Ends the processes."""
        self._process.communicate()

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._expect(line)

    def _expect(self, line: str) -> None:
        assert self._process.stdout is not None
        for said in self._process.stdout:
            if said.strip() == line:
                return
        raise RuntimeError(f"the training processes ended with {self._process.wait()}")


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


class PlainLoop(_InProcess):
    """Algorithm 1 as a tutorial has it: float32, AdamW, no clipping, no average of the weights."""

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        torch.manual_seed(config.seed)
        schedule = make_schedule(config)
        self._model = DiffusionModel(config.model, schedule)
        self._alpha = torch.tensor(schedule.alpha, dtype=torch.float32)
        self._sigma = torch.tensor(schedule.sigma, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), config.learning_rate)
        images = _Images(config, dataset)
        self._batches = images.batches(
            torch.utils.data.DataLoader(
                images.dataset(), config.batch_size, shuffle=True, drop_last=True
            )
        )

    def run(self, steps: int) -> None:
        """See TrainingLoop."""
        for _ in range(steps):
            self._step()

    def weights(self) -> dict[str, Tensor]:
        """See TrainingLoop."""
        return self._model.state_dict()

    def _step(self) -> None:
        x_0, label = next(self._batches)
        t = torch.randint(0, len(self._alpha), (len(x_0),))
        eps = torch.randn_like(x_0)
        x_t = self._alpha[t, None, None, None] * x_0 + self._sigma[t, None, None, None] * eps
        loss = F.mse_loss(self._model(x_t, t, label), eps)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()


class DiffusersLoop(_InProcess):
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
        self._network = network = DiffusionModel(config.model, schedule)
        self._noise = DDPMScheduler(schedule.num_train_timesteps, trained_betas=schedule.betas)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=28125)
        images = _Images(config, dataset)
        loader = torch.utils.data.DataLoader(
            images.dataset(), config.batch_size, shuffle=True, drop_last=True
        )
        self._model, self._optimizer, loader, self._rate = self._accelerator.prepare(
            network, optimizer, loader, rate
        )
        self._ema = EMAModel(
            network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
        )
        self._batches = images.batches(loader)

    def run(self, steps: int) -> None:
        """See TrainingLoop."""
        for _ in range(steps):
            self._step()

    def weights(self) -> dict[str, Tensor]:
        """See TrainingLoop."""
        return self._network.state_dict()

    def _step(self) -> None:
        x_0, label = next(self._batches)
        eps = torch.randn_like(x_0)
        t = torch.randint(0, self._noise.config.num_train_timesteps, (len(x_0),)).long()
        x_t = self._noise.add_noise(x_0, eps, t)
        with self._accelerator.accumulate(self._model):
            loss = F.mse_loss(self._model(x_t, t, label).float(), eps)
            self._accelerator.backward(loss)
            self._accelerator.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            self._rate.step()
            self._optimizer.zero_grad()
        self._ema.step(self._model.parameters())
