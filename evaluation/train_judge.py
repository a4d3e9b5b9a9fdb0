"""``python -m evaluation.train_judge``: train the judges on real digits and save them as ONNX.

Two networks of different shapes, so that the one that measures distances (``features``, F) is
never the one that reads labels (``labels``, C). Fixed seeds; the accuracy on the real test set is
stored in the file's metadata.
"""

import logging
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
from tqdm import trange

from evaluation.judge import JUDGES, Judge
from training.datasets import DATASETS, DatasetError, Split, load_dataset


class LeNet(nn.Module):
    """Two convolutions and 128 penultimate features (after LeCun et al. 1998)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.4), nn.Linear(64 * 7 * 7, 128), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(128, 10))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: [B, 1, 28, 28] in [-1, 1]. Returns logits [B, 10] and features [B, 128]."""
        features = self.body(image)
        return self.head(features), features


class NormalisedCnn(nn.Module):
    """3x3 convolutions with batch normalisation and global average pooling."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, out_channels in ((1, 16), (16, 32), (32, 64)):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels), nn.ReLU(),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, stride=2, bias=False),
                nn.BatchNorm2d(out_channels), nn.ReLU(),
            ]  # fmt: skip
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: [B, 1, 28, 28] in [-1, 1]. Returns logits [B, 10] and features [B, 64]."""
        features = self.body(image)
        return self.head(features), features


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augmentation: the whole batch moved by up to two pixels; uint8 [B, 1, H, W]."""
    dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(functional.pad(images, (2, 2, 2, 2)), (dy, dx), (2, 3))[:, :, 2:-2, 2:-2]


@dataclass(frozen=True)
class Recipe:
    """How one judge is trained."""

    network: Callable[[], nn.Module]
    epochs: int
    augment: bool
    seed: int


RECIPES = {
    "features": Recipe(LeNet, epochs=6, augment=False, seed=1),
    "labels": Recipe(NormalisedCnn, epochs=8, augment=True, seed=2),
}
BATCH_SIZE = 128
PEAK_LEARNING_RATE = 2e-3


def train_judge(recipe: Recipe, train: Split) -> nn.Module:
    """Train one judge: AdamW with a one-cycle learning rate. Returns it in eval mode."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    network = recipe.network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    images = torch.tensor(train.images)[:, None]
    labels = torch.tensor(train.labels).long()
    per_epoch = len(images) // BATCH_SIZE
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=recipe.epochs * per_epoch
    )
    for _ in trange(recipe.epochs, desc=type(network).__name__, unit="epoch"):
        order = torch.randperm(len(images), generator=generator)
        for i in range(per_epoch):
            rows = order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE]
            batch = shifted(images[rows], generator) if recipe.augment else images[rows]
            logits, _ = network(batch.float() / 127.5 - 1)
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            cycle.step()
    return network.eval()


def save_judge(network: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write (image float32 [batch, 1, 28, 28] in [-1, 1]) -> (logits, features) as ONNX."""
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
    onnx.helper.set_model_props(model, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


@click.command(help=__doc__)
@click.option("--dataset", type=click.Choice(sorted(DATASETS)), default="mnist", show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Directory with the IDX files.")
@click.option("--output", type=click.Path(path_type=Path), default=JUDGES, show_default=False)
@click.option("--judge", "names", type=click.Choice(sorted(RECIPES)), multiple=True,
              default=tuple(RECIPES), help="Which; repeatable. Unset: all.")  # fmt: skip
def main(dataset: str, data_dir: Path | None, output: Path, names: tuple[str, ...]) -> None:
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
        path = output / f"{name}.onnx"
        network = train_judge(recipe, data.train)
        metadata = {"network": type(network).__name__, "epochs": str(recipe.epochs),
                    "seed": str(recipe.seed), "dataset": dataset}  # fmt: skip
        save_judge(network, path, metadata)
        predicted = Judge(path).predict(data.test.images[:, None])
        accuracy = float(np.mean(predicted == data.test.labels))
        save_judge(network, path, metadata | {"test_accuracy": f"{accuracy:.4f}"})
        click.echo(f"{path}: {accuracy:.2%} of {len(data.test.labels)} real test images")


if __name__ == "__main__":
    main()
