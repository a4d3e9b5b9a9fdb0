"""A run from its first train step to its last: what happens between train steps, and when."""

import logging
import math
import signal
import time
from pathlib import Path

import numpy as np
import torch

from training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    ema_model,
    load_checkpoint,
    save_checkpoint,
)
from training.config import TrainConfig
from training.cost import remaining_seconds, training_flop
from training.datasets import Dataset
from training.device import Placement, Processes
from training.model import DiffusionModel
from training.records import Records
from training.run_folder import (
    Best,
    load_newest_whole,
    remove_older,
    require_unused,
    warn_if_short_of_room,
)
from training.samples import PER_LABEL, draw_samples, save_grid
from training.sanity import check_initial_loss, expected_initial_loss
from training.stopping import Interrupted, stop_signals
from training.trainer import Trainer, TrainingDiverged
from training.validation import Judge, Validation

logger = logging.getLogger(__name__)


class Loop:
    """One session of a run.

    Args:
        trainer: the state to start from.
        judge: judges the images that validation draws; None: none are drawn.
    """

    def __init__(self, trainer: Trainer, judge: Judge | None = None) -> None:
        self.trainer = trainer
        config = self.config = trainer.config
        self.end = min(trainer.total, config.stop_after or trainer.total)
        self.best = Best(config.output, config.select_by)
        self.validation = Validation(
            config, trainer.dataset, trainer.schedule, trainer.placement.device, judge
        )
        self._started = self._window_start = time.perf_counter()
        self._wall_seconds_before = trainer.wall_seconds
        self._train_steps_before = trainer.train_step
        self._losses: list[torch.Tensor] = []  # since the last line of the log
        self._first_figures: dict[str, float] = {}  # for the first line of the log

    def run(self) -> Path:
        """Train to the end, or to ``stop_after``; returns the path of the last checkpoint.

        Raises:
            DiskFull: checkpoints on disk are from before.
            Interrupted: SIGTERM or SIGINT came; the checkpoint is saved.
            TrainingDiverged: checkpoints on disk are from before.
        """
        trainer, config, processes = self.trainer, self.config, self.trainer.processes
        with (
            stop_signals() as stop,
            Records(
                config.output, trainer.total, trainer.train_step,
                active=processes.is_main, tensorboard=config.tensorboard,
            ) as records,
        ):  # fmt: skip
            while trainer.train_step < self.end:
                self._losses.append(trainer.run_train_step())
                records.advance()
                step = trainer.train_step
                if step == 1 and trainer.initialized_from is None:
                    self._look_at_initial_loss()
                is_last = step == self.end
                validates = is_last or _is_due(step, config.validate_every)
                measured: dict[str, float] = {}
                if validates or step % config.log_every == 0:
                    figures = self._figures()
                    if validates and processes.is_main:
                        measured = self._validate()
                    records.log(step, **figures, **measured)
                is_best = self.best.beaten_by(measured)
                received = processes.any(bool(stop), trainer.placement.device)
                if received or is_last or is_best or step % config.checkpoint_every == 0:
                    path = self.save()
                    if is_best:
                        self.best.take(path, measured)
                    if received and not is_last:
                        raise Interrupted(stop[0] if stop else signal.SIGTERM, path)
                if is_last or _is_due(step, config.sample_every):
                    self._save_pictures()
                    records.save_loss_curve(config.output / "loss.png")
        return checkpoint_path(config.output, trainer.train_step)

    def save(self) -> Path:
        """Write the checkpoint of now (main process); returns its path.

        Of older ones the newest is kept, in case this one turns out bad, and the best.

        Raises:
            DiskFull: it does not fit.
            TrainingDiverged: a weight is not finite, which only the next train step would notice.
        """
        trainer, output = self.trainer, self.config.output
        trainer.require_finite()
        trainer.wall_seconds = self._wall_seconds_before + time.perf_counter() - self._started
        path = checkpoint_path(output, trainer.train_step)
        if trainer.processes.is_main:
            save_checkpoint(trainer.checkpoint(), path)
            remove_older(output, trainer.train_step)
        return path

    def _look_at_initial_loss(self) -> None:
        """Of the first train step: its loss was computed before its update."""
        trainer = self.trainer
        images = trainer.dataset.train.images
        some = images[:: max(1, len(images) // 1000)].astype(np.float32)  # not by way of to_x_0
        mean_square = float(np.square(some / 127.5 - 1).mean())
        loss = trainer.processes.mean(self._losses[0]).item()
        expected = expected_initial_loss(self.config, trainer.schedule, mean_square)
        if trainer.processes.is_main:
            check_initial_loss(loss, expected)
        self._first_figures = {"initial_loss": loss, "expected_initial_loss": expected}

    def _figures(self) -> dict[str, float]:
        """What a line of the log says of the train steps since the last one."""
        trainer, losses = self.trainer, self._losses
        # .item() waits for the device, so the clock is read after it.
        loss = trainer.processes.mean(torch.stack(losses).mean()).item()
        now = time.perf_counter()
        figures = {
            "loss": loss,
            "learning_rate": trainer.optimizer.param_groups[-1]["lr"],
            "epoch": trainer.train_step * self.config.batch_size / len(trainer.images),
            "images_per_second": len(losses) * self.config.batch_size / (now - self._window_start),
            "progress": trainer.train_step / trainer.total,
            "eta_seconds": remaining_seconds(
                trainer.train_step - self._train_steps_before,
                trainer.total - trainer.train_step,
                now - self._started,
            ),
            "training_flop": training_flop(self.config.model, trainer.images_seen),
            **self._first_figures,
        }
        self._losses, self._first_figures, self._window_start = [], {}, now
        return figures

    def _validate(self) -> dict[str, float]:
        measured = self.validation.measure(self._ema_network())
        step = self.trainer.train_step
        if not all(math.isfinite(value) for value in measured.values()):
            raise TrainingDiverged(
                f"train step {step}: what is measured on test images is not finite; "
                "a lower --learning-rate may help"
            )
        self.trainer.validation = {"train_step": step, **measured}
        self._window_start = time.perf_counter()  # images_per_second are those of train steps
        return measured

    def _save_pictures(self) -> None:
        """Sample grid of the EMA weights, one row per label."""
        trainer, config = self.trainer, self.config
        if trainer.processes.is_main:
            images = draw_samples(
                self._ema_network(),
                trainer.schedule,
                config.sample_num_steps,
                trainer.placement.device,
            )
            path = config.output / f"samples-{trainer.train_step:08d}.png"
            save_grid(images, PER_LABEL, path)
            self._window_start = time.perf_counter()

    def _ema_network(self) -> DiffusionModel:
        return ema_model(self.trainer.checkpoint()).to(self.trainer.placement.device)


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many train steps, or never (0), happens now."""
    return every > 0 and step % every == 0


def train(
    config: TrainConfig,
    dataset: Dataset,
    placement: Placement,
    processes: Processes,
    judge: Judge | None = None,
) -> Path:
    """Run ``config``, resumed when it says so; returns the path of the last checkpoint.

    Args:
        config: the run.
        dataset: training images, and held-out ones for validation.
        placement: device, precision, layout.
        processes: this process among those of the run.
        judge: judges the images that validation draws; None: none are drawn.

    Raises:
        CheckpointError: nothing to resume, or a checkpoint of another run; or ``output`` already
            holds a run and ``resume`` is not set.
        DatasetError, ValueError: the data do not fit the network.
        And what ``Loop.run`` raises.
    """
    trainer = Trainer(config, dataset, placement, processes)
    if config.resume:
        path, checkpoint = load_newest_whole(config.output, warn=processes.is_main)
        trainer.restore(checkpoint)
        if processes.is_main:
            logger.info("resumed from %s", path)
    else:
        require_unused(config.output)
        if (source := config.initialize_from) is not None:
            path, checkpoint = (
                load_newest_whole(source, warn=processes.is_main)
                if source.is_dir()
                else (source, load_checkpoint(source))
            )
            trainer.start_from(checkpoint)
            if processes.is_main:
                logger.info("weights of %s", path)
    if not processes.agree(trainer.train_step, placement.device):
        raise CheckpointError(
            f"{config.output}: the processes found checkpoints of different train steps; all "
            "machines must see the same folder"
        )
    if processes.is_main:
        warn_if_short_of_room(config.output, trainer.model)
    return Loop(trainer, judge).run()
