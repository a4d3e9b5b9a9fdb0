"""Training runs small enough for a test: 500 real digits, a network of 16 and 32 channels."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import Checkpoint
from training.config import ModelConfig, TrainConfig
from training.datasets import Dataset, Split, load_dataset
from training.device import Processes, resolve_placement
from training.trainer import Trainer

SAMPLE = Path(__file__).resolve().parent / "data" / "mnist-sample"

TINY_MODEL: dict[str, Any] = {
    "widths": (16, 32),
    "middle_blocks": 1,
    "attention_head_width": 16,
    "sinusoidal_width": 16,
    "embedding_width": 16,
    "prediction": "eps",
}

TINY_RUN: dict[str, Any] = {
    "preset": "tiny",
    "data_dir": SAMPLE,
    "allow_other_data": True,
    "epochs": 0.16,  # of 500 images in batches of 8: 10 train steps
    "batch_size": 8,
    "loss_weighting": "eps",
    "precision": "fp32",
    "device": "cpu",
    "num_threads": 1,
    "log_every": 1,
    "sample_num_steps": 1,
    "validate_num_images": 0,
    "tensorboard": False,
}
TRAIN_STEPS = 10


def tiny_model_config(**changes: Any) -> ModelConfig:
    """The tiny network with some fields changed."""
    return ModelConfig(**(TINY_MODEL | changes))


def tiny_config(output: Path, **changes: Any) -> TrainConfig:
    """The tiny run on digits of half the size, with some fields, of it or its network, changed."""
    changes = {"image_size": 14} | changes
    of_model = {
        name: changes.pop(name)
        for name in list(changes)
        if name in ModelConfig.__dataclass_fields__
    }
    return TrainConfig(model=tiny_model_config(**of_model), output=output, **(TINY_RUN | changes))


def tiny_flags(output: Path, **changes: Any) -> list[str]:
    """The tiny run on digits of full size as flags of ``python -m training.train``."""
    flags = []
    for name, value in (TINY_MODEL | TINY_RUN | {"output": output} | changes).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            flags += [f"--{flag}", *map(str, values)]
    return flags


@functools.cache
def small_digits() -> Dataset:
    """The sample in tests/data, scaled down to 14 x 14 pixels: a quarter of the work."""
    dataset = load_dataset("mnist", SAMPLE, verify=False)
    train, test = (
        Split(split.images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).astype("u1"), split.labels)
        for split in (dataset.train, dataset.test)
    )
    return dataclasses.replace(dataset, train=train, test=test)


def tiny_trainer(output: Path, **changes: Any) -> Trainer:
    """A trainer of the tiny run at train step 0."""
    torch.set_num_threads(1)
    config = tiny_config(output, **changes)
    return Trainer(config, small_digits(), resolve_placement(config), Processes())


def assert_equal_to_the_bit(first: Checkpoint, second: Checkpoint) -> None:
    """Weights, EMA and optimiser state are the same numbers."""
    assert first.train_step == second.train_step
    for part in ("model_state", "ema_state", "optimizer_state"):
        old, new = getattr(first, part), getattr(second, part)
        assert old
        assert old.keys() == new.keys()
        assert not [name for name in old if not torch.equal(old[name], new[name])]


def read_log(output: Path) -> list[dict[str, float]]:
    """The lines of a run's log; each must be JSON by itself."""
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
