"""``python -m evaluation.train_judge``: train the judges on real images and save them as ONNX.

Judge F (``features``) measures distances; judges C (``labels-1`` to ``labels-3``) read labels. They
are networks of different shapes, so that nothing is both measured and read by the same one.

Seeds are fixed: the same machine, number of threads and version of PyTorch give the same file.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from evaluation.judge import JUDGES, Judge
from evaluation.judge_networks import LargeKernelCnn, LeNet, PreActivationResNet, StridedCnn
from training.datasets import DATASETS, DatasetError, Split, load_dataset


@dataclass(frozen=True)
class Augmentation:
    """How far an image is moved at most, each amount drawn uniformly per image. Never a flip."""

    shift_x: float = 0.0  # pixels
    shift_y: float = 0.0  # pixels
    rotation: float = 0.0  # degrees
    scale: float = 0.0  # 0.1: sizes of 0.9 to 1.1


AUGMENTATIONS = {
    "mnist": Augmentation(shift_x=2.0, shift_y=2.0, rotation=12.0, scale=0.1),
    "fashion_mnist": Augmentation(shift_x=2.0),  # clothes stand upright and fill the height
}


@dataclass(frozen=True)
class Recipe:
    """How one judge is trained.

    Attributes:
        network: makes the untrained network.
        epochs: passes over the training images.
        seed: of the weights, the order, dropout and the augmentation.
        augment: whether images are moved as AUGMENTATIONS says of their data set. A network that
            was taught not to mind where and how large a digit is cannot measure that either, so
            that the judge of distances does without.
        label_smoothing: share of the target spread over all labels. It moves the images of a label
            onto one point of feature space (Mueller et al. 2019, arXiv:1906.02629): for labels
            only.
        weight_decay: AdamW's.
    """

    network: Callable[[], nn.Module]
    epochs: int
    seed: int
    augment: bool = True
    label_smoothing: float = 0.05
    weight_decay: float = 0.01


RECIPES = {
    "features": Recipe(
        LeNet, epochs=16, seed=1, augment=False, label_smoothing=0.0, weight_decay=0.05
    ),
    "labels-1": Recipe(StridedCnn, epochs=10, seed=2),
    "labels-2": Recipe(PreActivationResNet, epochs=10, seed=3),
    "labels-3": Recipe(LargeKernelCnn, epochs=14, seed=4),
}
BATCH_SIZE = 128
PEAK_LEARNING_RATE = 2e-3


def moved(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Every image moved by amounts of its own, bilinearly; what comes in from outside is black.

    Args:
        images: float32 [B, 1, H, W], black being 0.
        augmentation: the largest amounts.
        generator: what the amounts are drawn with; 4 B numbers whatever ``augmentation`` is.

    Returns:
        The same shape.
    """
    height, width = images.shape[2:]
    x, y, turn, size = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle = turn * math.radians(augmentation.rotation)
    size = 1 + size * augmentation.scale
    cosine, sine = angle.cos() / size, angle.sin() / size
    # affine_grid's unit is half an image, and it wants the map from result to source.
    x = x * augmentation.shift_x * 2 / width
    y = y * augmentation.shift_y * 2 / height
    matrix = torch.stack([cosine, -sine, x, sine, cosine, y], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def train_judge(
    recipe: Recipe, train: Split, augmentation: Augmentation, description: str = ""
) -> nn.Module:
    """Train one judge: AdamW under a one-cycle learning rate (Smith and Topin 2017).

    Args:
        recipe: what to train, and how.
        train: real images, uint8 [N, 28, 28]; the rows of an epoch that fill no batch are left out.
        augmentation: used where the recipe augments.
        description: of the progress bar.

    Returns:
        The network in eval mode.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    network = recipe.network().to(memory_format=torch.channels_last)  # the faster one on CPUs
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=recipe.weight_decay
    )
    images = torch.tensor(train.images)[:, None]
    labels = torch.tensor(train.labels).long()
    batches = len(images) // BATCH_SIZE
    steps = recipe.epochs * batches
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    with tqdm(total=steps, desc=description, unit="step") as bar:
        for _ in range(recipe.epochs):
            order = torch.randperm(len(images), generator=generator)
            for i in range(batches):
                rows = order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE]
                batch = images[rows].float() / 255
                if recipe.augment:
                    batch = moved(batch, augmentation, generator)
                batch = (batch * 2 - 1).contiguous(memory_format=torch.channels_last)
                logits, _ = network(batch)
                loss = functional.cross_entropy(
                    logits, labels[rows], label_smoothing=recipe.label_smoothing
                )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                cycle.step()
                bar.update()
    return network.to(memory_format=torch.contiguous_format).eval()


def judge_model(network: nn.Module) -> onnx.ModelProto:
    """(image float32 [batch, 1, 28, 28] in [-1, 1]) -> (logits, features), float32 [batch, ...]."""
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 1, 28, 28),),
        input_names=["image"],
        output_names=["logits", "features"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # only without dynamo
    model = program.model_proto
    for node in model.graph.node:  # the exporter's stack traces name local paths
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    return model


def save_judge(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
    """Write ``model`` with ``metadata`` in place of what it had."""
    onnx.helper.set_model_props(model, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


@click.command(help=__doc__)
@click.option("--dataset", type=click.Choice(sorted(DATASETS)), default="mnist", show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Directory with the IDX files.")
@click.option("--output", type=click.Path(path_type=Path),
              help="Directory for the files. Unset: that of the shipped judges.")  # fmt: skip
@click.option("--judge", "names", type=click.Choice(list(RECIPES)), multiple=True,
              default=tuple(RECIPES), help="Which; repeatable. Unset: all.")  # fmt: skip
def main(dataset: str, data_dir: Path | None, output: Path | None, names: tuple[str, ...]) -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("training").setLevel(logging.INFO)  # where the data come from
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        data = load_dataset(dataset, data_dir)
    except DatasetError as error:
        raise click.ClickException(str(error)) from error
    for name in names:
        recipe = RECIPES[name]
        path = (output or JUDGES / dataset) / f"{name}.onnx"
        network = train_judge(recipe, data.train, AUGMENTATIONS[dataset], name)
        model = judge_model(network)
        metadata = {
            "network": type(network).__name__,
            "epochs": str(recipe.epochs),
            "seed": str(recipe.seed),
            "dataset": dataset,
            "dataset_md5": json.dumps(data.checksums, sort_keys=True),
        }
        save_judge(model, path, metadata)
        predicted = Judge(path).predict(data.test.images[:, None])
        accuracy = float(np.mean(predicted == data.test.labels))
        save_judge(model, path, metadata | {"test_accuracy": f"{accuracy:.4f}"})
        click.echo(f"{path}: {accuracy:.2%} of {len(data.test.labels):,} real test images")


if __name__ == "__main__":
    main()
