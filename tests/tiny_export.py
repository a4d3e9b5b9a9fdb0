"""A small network with weights that all matter, its checkpoint, and its graphs, exported once."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from diffusion.schedule import cosine_schedule
from export.graphs import Graphs, export_graphs
from tests.tiny_training import tiny_config
from training.checkpoint import Checkpoint, ema_model, save_checkpoint
from training.config import ModelConfig, TrainConfig
from training.model import DiffusionModel

LABEL_NAMES = ["nought", "one", "two"]
TOTAL_TRAIN_STEPS = 10


def small_run(**changes: Any) -> TrainConfig:
    """Three labels and 20 timesteps, so that a verification is a matter of a second."""
    small = {"num_labels": len(LABEL_NAMES), "num_train_timesteps": 20, "output": Path("runs/it")}
    return tiny_config(**(small | changes))


def random_model(config: ModelConfig, seed: int = 0) -> DiffusionModel:
    """Weights as before training, but nothing is zero: no part of the network can be wrong unseen.

    eps is of the order of 1, like that of a trained network.
    """
    torch.set_num_threads(1)  # more only wait for each other on a network this small
    torch.manual_seed(seed)
    model = DiffusionModel(config, cosine_schedule(20)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.unet.get_parameter("conv_out.weight").mul_(4.0)
    return model


def random_checkpoint(train_step: int = TOTAL_TRAIN_STEPS, **changes: Any) -> Checkpoint:
    """A run whose EMA is that of ``random_model``, and whose weights are others."""
    config = small_run(**changes)
    return Checkpoint(
        config=config,
        train_step=train_step,
        model_state=random_model(config.model, seed=1).state_dict(),
        ema_state=random_model(config.model).state_dict(),
        optimizer_state={},
        provenance={
            "dataset": "mnist",
            "dataset_md5": {"train-images-idx3-ubyte": "0" * 32},
            "label_names": LABEL_NAMES,
            "train_steps_total": TOTAL_TRAIN_STEPS,
            "wall_seconds": 1.5,
            "placement": "CPU, fp32, contiguous",
        },
    )


def saved(checkpoint: Checkpoint, folder: Path) -> Path:
    """The checkpoint as a file of the folder."""
    path = folder / f"checkpoint-{checkpoint.train_step:08d}.safetensors"
    save_checkpoint(checkpoint, path)
    return path


@functools.cache
def small_model() -> DiffusionModel:
    """The network of ``random_checkpoint``."""
    return ema_model(random_checkpoint())


@functools.cache
def small_graphs() -> Graphs:
    """Those of ``small_model``."""
    return export_graphs(small_model())


def changed(content: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    """A serialised graph after a change."""
    model = onnx.load_from_string(content)
    change(model)
    return model.SerializeToString()


def with_weight(content: bytes, name: str, change: Callable[[Any], None]) -> bytes:
    """A serialised graph with an initialiser changed in place."""

    def change_weight(model: onnx.ModelProto) -> None:
        [tensor] = [each for each in model.graph.initializer if each.name == name]
        array = np.array(numpy_helper.to_array(tensor))
        change(array)
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return changed(content, change_weight)
