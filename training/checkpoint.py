"""Checkpoints: one safetensors file with weights, EMA, optimiser state and, in its header, the run.

Written to a temporary name and renamed, so that a file under its final name is always whole.
"""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from training.config import FREE_ON_RESUME, TrainConfig, from_dict, to_dict
from training.disk import write_atomically
from training.model import DiffusionModel
from training.schedule import make_schedule

FORMAT_VERSION = 1


class CheckpointError(Exception):
    """The file cannot be read, or belongs to another configuration."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run is after ``train_step`` train steps."""

    config: TrainConfig
    train_step: int
    model_state: dict[str, Tensor]
    ema_state: dict[str, Tensor]
    optimizer_state: dict[str, Tensor]  # "PARAMETER_INDEX.KEY" -> tensor
    provenance: dict[str, Any]  # data checksums, device, wall time, versions


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write ``path`` atomically.

    Raises:
        DiskFull: it does not fit; nothing of it is left behind.
    """
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, state in (
            ("model", checkpoint.model_state),
            ("ema", checkpoint.ema_state),
            ("optimizer", checkpoint.optimizer_state),
        )
        for name, tensor in state.items()
    }
    header = {
        "format_version": str(FORMAT_VERSION),
        "train_step": str(checkpoint.train_step),
        "config": json.dumps(to_dict(checkpoint.config)),
        "provenance": json.dumps(checkpoint.provenance),
        "crc32": crc32(tensors),
    }
    write_atomically(path, save(tensors, header))


def crc32(tensors: dict[str, Tensor]) -> str:
    """Checksum of all numbers, in hexadecimal: safetensors itself notices a wrong length only."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: missing, damaged, or of another format version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    states: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    with _opened(path) as (opened, header):
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            states[part][rest] = tensor
        config = from_dict(json.loads(header["config"]))
        provenance = json.loads(header["provenance"])
        train_step = int(header["train_step"])
        # Of the first version, or by another program: no checksum.
        if header.get("crc32", found := crc32(tensors)) != found:
            raise ValueError("the checksum of its numbers is another")
    return Checkpoint(
        config, train_step, states["model"], states["ema"], states["optimizer"], provenance
    )


def read_provenance(path: Path) -> dict[str, Any]:
    """The provenance alone, which stands in the header.

    Raises:
        CheckpointError: as ``load_checkpoint``, as far as the header shows it.
    """
    with _opened(path) as (_, header):
        provenance: dict[str, Any] = json.loads(header["provenance"])
    return provenance


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The file and its header; what the body raises on bad contents becomes a CheckpointError."""
    try:
        with safe_open(path, framework="pt") as opened:
            header = opened.metadata() or {}
            if header.get("format_version") != str(FORMAT_VERSION):
                found = header.get("format_version", "none")
                raise CheckpointError(f"{path}: format version {found}, expected {FORMAT_VERSION}")
            yield opened, header
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole checkpoint of this project: {error}") from error


def newest_checkpoint(folder: Path) -> Path | None:
    """The ``checkpoint-NNNNNNNN.safetensors`` with the highest train step, or None."""
    return max(folder.glob("checkpoint-*.safetensors"), default=None)


def checkpoint_path(folder: Path, train_step: int) -> Path:
    """Where the checkpoint after ``train_step`` lies."""
    return folder / f"checkpoint-{train_step:08d}.safetensors"


def require_same_run(saved: TrainConfig, asked: TrainConfig) -> None:
    """Refuse to continue a run under a configuration that would compute something else.

    Raises:
        CheckpointError: names every field that differs, with both values.
    """
    differing = [
        text for name, text in _differences(saved, asked).items() if name not in FREE_ON_RESUME
    ]
    if differing:
        raise CheckpointError("cannot resume another configuration: " + "; ".join(differing))


def require_same_network(saved: TrainConfig, asked: TrainConfig) -> None:
    """Refuse weights that were trained to say something else: another network, other noise levels.

    Raises:
        CheckpointError: names every field that differs, with both values.
    """
    differing = [
        text
        for name, text in _differences(saved, asked).items()
        if name in {"schedule", "num_train_timesteps"}
        or (name.startswith("model.") and name != "model.dropout")
    ]
    if differing:
        raise CheckpointError("cannot start from another network: " + "; ".join(differing))


def _differences(saved: TrainConfig, asked: TrainConfig) -> dict[str, str]:
    """Fields that differ, and how; those of the network are called model.NAME."""
    old, new = to_dict(saved), to_dict(asked)
    old_model, new_model = old.pop("model"), new.pop("model")
    old |= {f"model.{name}": value for name, value in old_model.items()}
    new |= {f"model.{name}": value for name, value in new_model.items()}
    return {
        name: f"{name}: the checkpoint has {old.get(name)!r}, asked for {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def ema_model(checkpoint: Checkpoint) -> DiffusionModel:
    """The network with the EMA weights, on the CPU, in eval mode: what gets exported."""
    model = DiffusionModel(checkpoint.config.model, make_schedule(checkpoint.config))
    model.load_state_dict(checkpoint.ema_state)
    return model.eval().requires_grad_(False)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Per-parameter tensors of the optimiser by "INDEX.KEY"."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, values in state.items() for key, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """Inverse of :func:`flatten_optimizer`; hyperparameters stay as constructed."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        i, _, key = name.partition(".")
        parameter = parameters[int(i)]
        if tensor.shape == parameter.shape:
            # The fused kernel goes through memory: a moment must lie as its parameter does, and a
            # channels_last parameter does not lie as the file does.
            tensor = torch.empty_like(parameter).copy_(tensor)  # noqa: PLW2901
        state.setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
