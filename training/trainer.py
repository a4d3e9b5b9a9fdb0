"""The state of a run, and one train step: Ho et al. 2020, Algorithm 1, with EMA."""

import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.batches import batch_indices, learning_rate_factor, total_train_steps
from training.checkpoint import (
    Checkpoint,
    CheckpointError,
    flatten_optimizer,
    require_same_network,
    require_same_run,
    restore_optimizer,
)
from training.compiling import compiled_or_not
from training.config import TrainConfig
from training.cost import training_flop
from training.data_checks import require_fit
from training.datasets import Dataset
from training.device import Placement, Processes
from training.ema import PowerEma
from training.model import DiffusionModel
from training.muon import make_optimizer
from training.objective import DiffusionLoss, Draw, draw
from training.schedule import make_schedule
from training.source_code import running_code


class TrainingDiverged(Exception):
    """The loss, the gradient or what the network gives is not finite."""


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the network at once."""

    x_0: Tensor  # [B, C, H, W] float32 in [-1, 1]
    label: Tensor  # [B] int64
    random: Draw


class Trainer:
    """State of a run and what one train step does to it.

    Args:
        config: the run.
        dataset: images uint8 [N, H, W]; all of them are kept on the device.
        placement: device, precision, layout.
        processes: this process among those of the run.

    Raises:
        DatasetError, ValueError: the network is not made for images or labels like the data's.
    """

    def __init__(
        self, config: TrainConfig, dataset: Dataset, placement: Placement, processes: Processes
    ) -> None:
        require_fit(config, dataset)
        self.config, self.placement, self.processes = config, placement, processes
        self.dataset = dataset
        device = placement.device
        self.schedule = make_schedule(config)
        self.images = torch.tensor(dataset.train.images, device=device)[:, None]
        self.labels = torch.tensor(dataset.train.labels, device=device)
        self.total = total_train_steps(config, len(self.images))
        torch.manual_seed(config.seed)  # of the initial weights
        self.model = DiffusionModel(config.model, self.schedule)
        self.model.to(device).to(memory_format=placement.memory_format)
        self.optimizer = make_optimizer(config, self.model)
        self.ema = PowerEma(self.model, config.ema_relative_width)
        self.loss: nn.Module = DiffusionLoss(self.model, self.schedule, config).to(device)
        if config.compile:
            self.loss = compiled_or_not(self.loss, self._try_out, processes, device)
        if processes.world_size > 1:
            ids = [device] if device.type == "cuda" else None
            self.loss = DistributedDataParallel(self.loss, device_ids=ids)
        self.train_step = 0
        self.wall_seconds = 0.0  # over all sessions of the run, and of the one it started from
        self.initialized_from: dict[str, Any] | None = None  # provenance of that one
        self.validation: dict[str, float] = {}  # what was measured last, and its train step
        self.code = running_code()

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Take over the EMA weights of another run, and nothing else of it.

        Raises:
            CheckpointError: they are of another network.
        """
        require_same_network(checkpoint.config, self.config)
        self.model.load_state_dict(checkpoint.ema_state)
        self.ema = PowerEma(self.model, self.config.ema_relative_width)
        self.initialized_from = checkpoint.provenance
        self.wall_seconds = checkpoint.provenance["wall_seconds"]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            CheckpointError: it is of another run, or was trained on other data.
        """
        require_same_run(checkpoint.config, self.config)
        if checkpoint.provenance["dataset_md5"] != self.dataset.checksums:
            raise CheckpointError(
                "cannot resume: the training data are not those of the checkpoint"
            )
        self.model.load_state_dict(checkpoint.model_state)
        for name, value in checkpoint.ema_state.items():
            self.ema.state[name].copy_(value)
        restore_optimizer(self.optimizer, checkpoint.optimizer_state)
        self.train_step = checkpoint.train_step
        self.wall_seconds = checkpoint.provenance["wall_seconds"]
        self.validation = checkpoint.provenance.get("validation", {})
        self.initialized_from = checkpoint.provenance.get("initialized_from")

    def checkpoint(self) -> Checkpoint:
        """What a checkpoint of now would hold."""
        names, num_labels = self.dataset.label_names, self.config.model.num_labels
        if len(names) != num_labels:  # other data under the name of a known set
            names = tuple(str(label) for label in range(num_labels))
        provenance: dict[str, Any] = {
            "dataset": self.config.dataset,
            "dataset_md5": self.dataset.checksums,
            "dataset_label_counts": np.bincount(
                self.dataset.train.labels, minlength=num_labels
            ).tolist(),
            "label_names": list(names),
            "train_steps_total": self.total,
            "initialized_from": self.initialized_from,
            "images_seen": self.images_seen,
            "training_flop": training_flop(self.config.model, self.images_seen),
            "wall_seconds": round(self.wall_seconds, 1),
            "validation": self.validation,
            "placement": str(self.placement),
            "processes": self.processes.world_size,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **self.code,
        }
        return Checkpoint(
            self.config, self.train_step, self.model.state_dict(), self.ema.state,
            flatten_optimizer(self.optimizer), provenance,
        )  # fmt: skip

    @property
    def images_seen(self) -> int:
        """Training images so far, with repetition, and those of the run it started from."""
        before: int = (self.initialized_from or {}).get("images_seen", 0)
        return before + self.train_step * self.config.batch_size

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This process's images and random numbers of train step 1..total, in equal parts."""
        config, device = self.config, self.placement.device
        rows = self.processes.share(config.batch_size)
        indices = torch.as_tensor(
            batch_indices(config, step, len(self.images))[rows], device=device
        )
        random = draw(config, step, device)
        random = Draw(random.t[rows], random.eps[rows], random.drop_label[rows])
        x_0 = self.images[indices].float().div_(127.5).sub_(1.0)
        x_0 = x_0.contiguous(memory_format=self.placement.memory_format)
        label = self.labels[indices].long()
        size = len(indices) // config.gradient_accumulation
        parts = [slice(start, start + size) for start in range(0, len(indices), size)]
        return [
            MicroBatch(
                x_0[part],
                label[part],
                Draw(random.t[part], random.eps[part], random.drop_label[part]),
            )
            for part in parts
        ]

    def run_train_step(self, batch: list[MicroBatch] | None = None) -> Tensor:
        """One optimiser update.

        Args:
            batch: this process's part of it; None: that of the next train step.

        Returns:
            Mean loss over this process's images, before the update (not synchronised).

        Raises:
            TrainingDiverged: the gradient norm, and so loss or gradient, is not finite. The weights
                are still those of the step before.
        """
        config = self.config
        step = self.train_step + 1
        batch = self.micro_batches(step) if batch is None else batch
        # Of dropout: apart from the numbers of draw, and from those of the other processes.
        torch.manual_seed(2**62 + (config.seed * 1_000_003 + step) * 4096 + self.processes.rank)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for micro_batch in batch:
            with self._gradient_exchange(micro_batch is batch[-1]):
                loss = self._forward(self.loss, micro_batch) / len(batch)
                loss.backward()
            losses.append(loss.detach())
        loss = torch.stack(losses).sum()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        if not torch.isfinite(norm):
            raise TrainingDiverged(
                f"train step {step}: the gradient norm is {norm.item()} and the loss "
                f"{loss.item()}; a lower --learning-rate, or --precision fp32, may help"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(config, step, self.total)
        self.optimizer.step()
        self.ema.update(self.model, step)
        self.train_step = step
        return loss

    def require_finite(self) -> None:
        """Refuse to save weights that only the next train step would find wanting.

        Raises:
            TrainingDiverged: a weight is not finite.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.model.parameters()):
            raise TrainingDiverged(
                f"train step {self.train_step}: a weight is not finite and nothing was saved; "
                "a lower --learning-rate may help"
            )

    def _gradient_exchange(self, is_last: bool) -> AbstractContextManager[None]:
        """Processes add up their gradients once per train step, with the last micro-batch."""
        if is_last or not isinstance(self.loss, DistributedDataParallel):
            return nullcontext()
        return self.loss.no_sync()

    def _forward(self, loss: nn.Module, batch: MicroBatch) -> Tensor:
        dtype = self.placement.autocast_dtype
        with torch.autocast(self.placement.device.type, dtype, dtype is not None):
            return loss(batch.x_0, batch.label, batch.random)

    def _try_out(self, loss: nn.Module) -> None:
        """Forward and backward as in a train step, without a trace."""
        self._forward(loss, self.micro_batches(1)[0]).backward()
        self.optimizer.zero_grad(set_to_none=True)
