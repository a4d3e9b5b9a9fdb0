"""The training loop: Ho et al. 2020, Algorithm 1, with EMA, checkpoints and clean stops."""

import functools
import logging
import math
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diffusion.schedule import Schedule, cosine_schedule, linear_schedule
from training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    ema_model,
    flatten_optimizer,
    load_checkpoint,
    newest_checkpoint,
    require_same_run,
    restore_optimizer,
    save_checkpoint,
)
from training.config import TrainConfig, require
from training.datasets import Dataset
from training.device import Placement, Processes
from training.ema import PowerEma
from training.model import DiffusionModel
from training.objective import DiffusionLoss, Draw, draw
from training.records import Records
from training.samples import PER_LABEL, draw_samples, save_grid

logger = logging.getLogger(__name__)


class TrainingDiverged(Exception):
    """The loss or the gradient is not finite."""


class Interrupted(Exception):
    """A signal asked for a stop, and the checkpoint is saved."""

    def __init__(self, signal_number: int, path: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; saved {path}")
        self.signal_number = signal_number


def make_schedule(config: TrainConfig) -> Schedule:
    """The noise schedule that the configuration names.

    Raises:
        ValueError: float64 has not as many noise levels as asked for.
    """
    make = {"cosine": cosine_schedule, "linear": linear_schedule}[config.schedule]
    try:
        return make(config.num_train_timesteps)
    except ValueError as error:
        raise ValueError(
            f"num_train_timesteps is {config.num_train_timesteps}; legal: fewer, with the "
            f"{config.schedule} schedule: {error}"
        ) from error


def total_train_steps(config: TrainConfig, num_images: int) -> int:
    """Length of the whole run."""
    return max(1, round(config.epochs * num_images / config.batch_size))


def learning_rate_factor(config: TrainConfig, step: int, total: int) -> float:
    """Share of the peak learning rate at step 1..total: linear warm-up, then cosine to zero."""
    warmup = max(1, round(config.warmup_fraction * total))
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@functools.lru_cache(maxsize=2)  # a batch may lie across two epochs
def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """The permutation of the training set in one epoch: int64 [num_images]."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def batch_indices(config: TrainConfig, step: int, num_images: int) -> np.ndarray:
    """Rows of the training set in the global batch of step 1..total: int64 [batch_size].

    The order is an endless stream of permutations, one per epoch, each a function of (seed, epoch).
    """
    position = (step - 1) * config.batch_size + np.arange(config.batch_size)
    epochs = position // num_images
    indices = np.empty(config.batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = epoch_order(config.seed, int(epoch), num_images)
        indices[epochs == epoch] = order[position[epochs == epoch] % num_images]
    return indices


def require_fit(config: TrainConfig, dataset: Dataset) -> None:
    """Raise ValueError naming the field unless the network is made for images like these."""
    model, images = config.model, dataset.train.images
    require(model.image_channels == 1, "image_channels", model.image_channels, "1, as IDX is grey")
    size = (model.image_size, model.image_size)
    require(images.shape[1:] == size, "image_size", size, f"{images.shape[1:]}, that of the images")
    labels = int(dataset.train.labels.max()) + 1
    require(
        model.num_labels >= labels, "num_labels", model.num_labels, f"at least {labels}, the data's"
    )


class Trainer:
    """State of a run and one method per thing that happens to it.

    Args:
        config: the run.
        dataset: images uint8 [N, H, W]; all of them are kept on the device.
        placement: device, precision, layout.
        processes: this process among those of the run.

    Raises:
        ValueError: the network is not made for images or labels like the data's.
    """

    def __init__(
        self, config: TrainConfig, dataset: Dataset, placement: Placement, processes: Processes
    ) -> None:
        require_fit(config, dataset)
        self.config, self.placement, self.processes = config, placement, processes
        device = placement.device
        self.schedule = make_schedule(config)
        self.images = torch.tensor(dataset.train.images, device=device)[:, None]
        self.labels = torch.tensor(dataset.train.labels, device=device)
        self.total = total_train_steps(config, len(self.images))
        torch.manual_seed(config.seed)  # of the initial weights
        self.model = DiffusionModel(config.model)
        self.model.to(device).to(memory_format=placement.memory_format)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.ema = PowerEma(self.model, config.ema_relative_width)
        loss = DiffusionLoss(self.model, self.schedule, config.model.num_labels).to(device)
        self.loss: nn.Module = loss
        if processes.world_size > 1:
            ids = [device] if device.type == "cuda" else None
            self.loss = DistributedDataParallel(loss, device_ids=ids)
        self.train_step = 0
        self.wall_seconds = 0.0  # over all sessions of the run
        self.dataset = dataset

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run."""
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

    def checkpoint(self) -> Checkpoint:
        """What a checkpoint of now would hold."""
        names, num_labels = self.dataset.label_names, self.config.model.num_labels
        if len(names) != num_labels:  # other data under the name of a known set
            names = tuple(str(label) for label in range(num_labels))
        provenance: dict[str, Any] = {
            "dataset": self.config.dataset,
            "dataset_md5": self.dataset.checksums,
            "label_names": list(names),
            "train_steps_total": self.total,
            "images_seen": self.train_step * self.config.batch_size,
            "wall_seconds": round(self.wall_seconds, 1),
            "placement": str(self.placement),
            "processes": self.processes.world_size,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return Checkpoint(
            self.config, self.train_step, self.model.state_dict(), self.ema.state,
            flatten_optimizer(self.optimizer), provenance,
        )  # fmt: skip

    def save(self) -> Path:
        """Write the checkpoint of now (main process); returns its path.

        Of older ones only the newest is kept, in case this one turns out bad.

        Raises:
            TrainingDiverged: a weight is not finite, which only the next train step would notice.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.model.parameters()):
            raise TrainingDiverged(
                f"train step {self.train_step}: a weight is not finite and nothing was saved; "
                "a lower --learning-rate may help"
            )
        path = checkpoint_path(self.config.output, self.train_step)
        if self.processes.is_main:
            save_checkpoint(self.checkpoint(), path)
            older = sorted(self.config.output.glob("checkpoint-*.safetensors"))
            for stale in older[:-2]:
                stale.unlink()
        return path

    def run_train_step(self) -> torch.Tensor:
        """One optimiser update; returns the mean loss of the global batch (not synchronised).

        Raises:
            TrainingDiverged: the gradient norm, and so loss or gradient, is not finite. The weights
                are still those of the step before.
        """
        config, device = self.config, self.placement.device
        step = self.train_step + 1
        rows = self.processes.share(config.batch_size)
        indices = torch.as_tensor(
            batch_indices(config, step, len(self.images))[rows], device=device
        )
        random = draw(config, step, device)
        random = Draw(random.t[rows], random.eps[rows], random.drop_label[rows])
        # Of dropout: apart from the numbers of draw, and from those of the other processes.
        torch.manual_seed(2**62 + (config.seed * 1_000_003 + step) * 4096 + self.processes.rank)
        x_0 = self.images[indices].float().div_(127.5).sub_(1.0)
        x_0 = x_0.contiguous(memory_format=self.placement.memory_format)
        label = self.labels[indices].long()

        with torch.autocast(
            device.type, self.placement.autocast_dtype, self.placement.autocast_dtype is not None
        ):
            loss = self.loss(x_0, label, random)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        if not torch.isfinite(norm):
            raise TrainingDiverged(
                f"train step {step}: the gradient norm is {norm.item()} and the loss "
                f"{loss.item()}; a lower --learning-rate, or --precision fp32, may help"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(config, step, self.total)
        self.optimizer.step()
        self.ema.update(self.model, step)
        self.train_step = step
        return loss.detach()

    def save_pictures(self) -> None:
        """Sample grid of the EMA weights, one row per label."""
        if self.processes.is_main:
            model = ema_model(self.checkpoint()).to(self.placement.device)
            images = draw_samples(
                model, self.schedule, self.config.sample_num_steps, self.placement.device
            )
            save_grid(images, PER_LABEL, self.config.output / f"samples-{self.train_step:08d}.png")

    def run(self) -> Path:
        """Train to the end, or to ``stop_after``; returns the path of the last checkpoint.

        Raises:
            TrainingDiverged: checkpoints on disk are from before.
            Interrupted: SIGTERM or SIGINT came; the checkpoint is saved.
        """
        config = self.config
        end = min(self.total, config.stop_after or self.total)
        with (
            stop_signals() as stop,
            Records(
                config.output, self.total, self.train_step,
                active=self.processes.is_main, tensorboard=config.tensorboard,
            ) as records,
        ):  # fmt: skip
            losses: list[torch.Tensor] = []
            window_start = time.perf_counter()
            while self.train_step < end:
                step_start = time.perf_counter()
                losses.append(self.run_train_step())
                records.advance()
                step = self.train_step
                if step % config.log_every == 0 or step == end:
                    # .item() waits for the device, so the clock is read after it.
                    loss = self.processes.mean(torch.stack(losses).mean()).item()
                    seconds = time.perf_counter() - window_start
                    records.log(
                        step,
                        loss=loss,
                        learning_rate=self.optimizer.param_groups[0]["lr"],
                        epoch=step * config.batch_size / len(self.images),
                        images_per_second=len(losses) * config.batch_size / seconds,
                    )
                    losses, window_start = [], time.perf_counter()
                self.wall_seconds += time.perf_counter() - step_start
                received = self.processes.any(bool(stop), self.placement.device)
                if received or step == end or step % config.checkpoint_every == 0:
                    path = self.save()
                    if received and step < end:
                        raise Interrupted(stop[0] if stop else signal.SIGTERM, path)
                if step == end or (config.sample_every and step % config.sample_every == 0):
                    self.save_pictures()
                    records.save_loss_curve(config.output / "loss.png")
        return checkpoint_path(config.output, self.train_step)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives SIGTERM and SIGINT instead of the process; a second one acts at once."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])
        logger.warning("%s: saving after this train step", signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, remember)
    try:
        yield received
    finally:
        for taken, handler in previous.items():
            signal.signal(taken, handler)


def train(
    config: TrainConfig, dataset: Dataset, placement: Placement, processes: Processes
) -> Path:
    """Run ``config``, resumed when it says so; returns the path of the last checkpoint.

    Raises:
        CheckpointError: nothing to resume, or a checkpoint of another run; or ``output`` already
            holds a run and ``resume`` is not set.
    """
    trainer = Trainer(config, dataset, placement, processes)
    newest = newest_checkpoint(config.output)
    if config.resume:
        if newest is None:
            raise CheckpointError(f"{config.output}: no checkpoint to resume from")
        trainer.restore(load_checkpoint(newest))
        if processes.is_main:
            logger.info("resumed from %s", newest)
    elif newest is not None:
        raise CheckpointError(
            f"{config.output} holds a run already ({newest.name}); continue it with --resume, or "
            "name another --output"
        )
    return trainer.run()
