"""The folder of a run: which checkpoints stay, which is resumed, and which is the best."""

import logging
import math
import os
import shutil
from pathlib import Path

from torch import nn

from training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    newest_checkpoint,
    read_provenance,
)
from training.disk import free_bytes, room_for

logger = logging.getLogger(__name__)

BEST_NAME = "best.safetensors"
_KEPT = 2
_MOST_AT_ONCE = _KEPT + 2
"""Checkpoints that lie there at once, at most: those kept, the best, and one being written."""


def require_unused(folder: Path) -> None:
    """Refuse to start a run in the folder of another.

    Raises:
        CheckpointError: there is a checkpoint in it.
    """
    best = folder / BEST_NAME
    found = newest_checkpoint(folder) or (best if best.exists() else None)
    if found is not None:
        raise CheckpointError(
            f"{folder} holds a run already ({found.name}); continue it with --resume, or "
            "name another --output"
        )


def load_newest_whole(folder: Path, *, warn: bool = True) -> tuple[Path, Checkpoint]:
    """The newest checkpoint that can be read; those that cannot stay where they are.

    Args:
        folder: of the run.
        warn: say which ones were passed over.

    Raises:
        CheckpointError: there is none; names those that are damaged.
    """
    candidates = sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)
    best = folder / BEST_NAME
    if best.exists():  # as old as one of the others, or older
        candidates.append(best)
    damaged: list[str] = []
    for path in candidates:
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if warn:
            for message in damaged:
                logger.warning("%s; passed over, %s is used", message, path.name)
        return path, checkpoint
    if damaged:
        raise CheckpointError(
            f"{folder}: none of {len(damaged)} checkpoints is whole; start again with another "
            "--output. " + "; ".join(damaged)
        )
    raise CheckpointError(f"{folder}: no checkpoint to resume from")


def remove_older(folder: Path, train_step: int) -> None:
    """Keep the checkpoint of ``train_step`` and the newest before it, in case it turns out bad.

    Later ones, damaged ones from before a resumption, say, are left alone.
    """
    newest = checkpoint_path(folder, train_step)
    older = [path for path in folder.glob("checkpoint-*.safetensors") if path <= newest]
    for stale in sorted(older)[:-_KEPT]:
        stale.unlink()


def warn_if_short_of_room(folder: Path, model: nn.Module) -> None:
    """Log one line if the checkpoints of a run of ``model`` will not fit."""
    # Weights, EMA and both of AdamW's moments; Muon has one.
    of_one = 4 * sum(p.numel() * p.element_size() for p in model.parameters())
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    needed, free = _MOST_AT_ONCE * of_one - there, free_bytes(folder)
    if free < needed:
        logger.warning(
            "%s: %s bytes are free, and the checkpoints of this run need %s more (%s each); the "
            "run will stop when the disk is full",
            folder, f"{free:,}", f"{needed:,}", f"{of_one:,}",
        )  # fmt: skip


class Best:
    """The checkpoint with the lowest figure so far, as ``best.safetensors`` in the run's folder.

    That file is all the state there is: the figure stands in its provenance.

    Args:
        folder: of the run.
        select_by: eps_mse or frechet.
    """

    def __init__(self, folder: Path, select_by: str) -> None:
        self.path = folder / BEST_NAME
        self._figure = f"validation_{select_by}"
        self.value = math.inf
        if self.path.exists():
            try:
                validation = read_provenance(self.path).get("validation", {})
                self.value = float(validation.get(self._figure, math.inf))
            except CheckpointError as error:
                logger.warning("%s; the next best checkpoint replaces it", error)

    def beaten_by(self, figures: dict[str, float]) -> bool:
        """Whether what was measured is lower than at every time before."""
        return figures.get(self._figure, math.inf) < self.value

    def take(self, checkpoint: Path, figures: dict[str, float]) -> None:
        """Give a checkpoint that was just saved the name of the best as well, atomically.

        Raises:
            DiskFull: the file system has no hard links, and a copy does not fit.
        """
        partial = self.path.with_name(self.path.name + ".partial")
        partial.unlink(missing_ok=True)
        try:
            os.link(checkpoint, partial)
        except OSError:  # no hard links here
            with room_for(self.path, checkpoint.stat().st_size):
                try:
                    shutil.copyfile(checkpoint, partial)
                except OSError:
                    partial.unlink(missing_ok=True)
                    raise
        partial.replace(self.path)
        partial.unlink(missing_ok=True)  # renaming one link of a file to another does nothing
        self.value = figures[self._figure]
