"""evaluation.train_judge: recipes, augmentation and the files that come of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from evaluation import train_judge as module
from evaluation.judge import FEATURES, LABELS, Judge
from evaluation.train_judge import AUGMENTATIONS, RECIPES, Augmentation, moved, train_judge
from training.datasets import DATASETS, Dataset, Split, load_dataset

SAMPLE = Path(__file__).parent / "data" / "mnist-sample"


@pytest.fixture(scope="module")
def sample() -> Dataset:
    torch.set_num_threads(1)  # more only wait for each other on batches this small
    return load_dataset("mnist", SAMPLE, verify=False)


def some_images(sample: Dataset) -> torch.Tensor:
    return torch.tensor(sample.train.images[:64, None]).float() / 255


def dots(x: float, y: float) -> torch.Tensor:
    """200 images of one round blob, x and y pixels from the middle."""
    steps = torch.arange(28) - 13.5
    image = torch.exp(-((steps[None] - x) ** 2 + (steps[:, None] - y) ** 2) / 4)
    return image.expand(200, 1, 28, 28)


def places(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of each image's centre of mass, in pixels from the middle."""
    steps = torch.arange(28) - 13.5
    mass = images.sum(dim=(1, 2, 3))
    return (images.sum(dim=(1, 2)) @ steps) / mass, (images.sum(dim=(1, 3)) @ steps) / mass


def test_recipes_name_every_judge_and_share_no_network_or_seed() -> None:
    assert tuple(RECIPES) == (FEATURES, *LABELS)
    assert AUGMENTATIONS.keys() == DATASETS.keys()
    assert len({recipe.network for recipe in RECIPES.values()}) == len(RECIPES)
    assert len({recipe.seed for recipe in RECIPES.values()}) == len(RECIPES)


def test_no_movement_changes_nothing(sample: Dataset) -> None:
    images = some_images(sample)
    still = moved(images, Augmentation(), torch.Generator().manual_seed(0))
    assert torch.allclose(still, images, atol=1e-5)


def test_shifts_stay_within_their_bounds_and_differ_between_images() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = places(moved(dots(0, 0), Augmentation(shift_x=3), generator))
    assert x.abs().max() <= 3.01
    assert x.min() < -2.8
    assert x.max() > 2.8
    assert y.abs().max() < 0.01
    x, y = places(moved(dots(0, 0), Augmentation(shift_y=2), generator))
    assert x.abs().max() < 0.01
    assert y.abs().max() <= 2.01
    assert len(y.round(decimals=3).unique()) > 100


def test_rotations_turn_about_the_middle_both_ways() -> None:
    x, y = places(moved(dots(8, 0), Augmentation(rotation=12), torch.Generator().manual_seed(0)))
    degrees = torch.atan2(y, x).rad2deg()
    assert torch.allclose(torch.hypot(x, y), torch.tensor(8.0), atol=0.05)
    assert degrees.abs().max() <= 12.1
    assert degrees.min() < -11
    assert degrees.max() > 11


def test_scales_grow_and_shrink_about_the_middle() -> None:
    x, y = places(moved(dots(8, 4), Augmentation(scale=0.1), torch.Generator().manual_seed(0)))
    assert torch.allclose(y / x, torch.tensor(0.5), atol=0.01)
    assert x.min() == pytest.approx(7.2, abs=0.1)
    assert x.max() == pytest.approx(8.8, abs=0.1)


def test_what_comes_in_from_outside_is_black() -> None:
    white = torch.ones(8, 1, 28, 28)
    shifted = moved(white, Augmentation(shift_x=6), torch.Generator().manual_seed(0))
    assert (shifted[:, 0, :, [0, -1]].amin(dim=(1, 2)) == 0).sum() >= 6


def test_nothing_is_mirrored(sample: Dataset) -> None:
    images = some_images(sample)
    for augmentation in AUGMENTATIONS.values():
        results = moved(images, augmentation, torch.Generator().manual_seed(0))
        likeness = (images * results).sum(dim=(1, 2, 3))
        mirrored = (images.flip(3) * results).sum(dim=(1, 2, 3))
        assert (likeness > mirrored).float().mean() > 0.8


@pytest.mark.parametrize("name", RECIPES)
def test_the_seed_alone_decides_the_weights(name: str, sample: Dataset) -> None:
    few = Split(sample.train.images[:256], sample.train.labels[:256])

    def weights(seed: int) -> dict[str, torch.Tensor]:
        recipe = dataclasses.replace(RECIPES[name], epochs=1, seed=seed)
        network = train_judge(recipe, few, AUGMENTATIONS["mnist"])
        assert not network.training
        return network.state_dict()

    first = weights(1)
    torch.manual_seed(3)  # what came before does not matter
    second, other = weights(1), weights(2)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not any(torch.equal(value, other[key]) for key, value in first.items() if value.ndim > 1)


def test_the_command_writes_what_was_trained_and_how_well_it_reads(
    sample: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPES["labels-2"], epochs=2)
    monkeypatch.setitem(module.RECIPES, "labels-2", recipe)
    monkeypatch.setattr(module, "BATCH_SIZE", 16)
    monkeypatch.setattr(module, "load_dataset", lambda name, data_dir: sample)
    result = CliRunner().invoke(
        module.main, ["--judge", "labels-2", "--output", str(tmp_path)], catch_exceptions=False
    )
    path = tmp_path / "labels-2.onnx"
    assert list(tmp_path.iterdir()) == [path]
    judge = Judge(path, num_threads=1)
    images, labels = sample.test.images[:, None], sample.test.labels
    accuracy = np.mean(judge.predict(images) == labels)
    assert accuracy > 0.3, "two short epochs teach it something"
    assert judge.test_accuracy == pytest.approx(accuracy, abs=1e-4)
    assert f"{path}: {accuracy:.2%} of {len(labels)} real test images" in result.output
    assert judge.metadata["network"] == "PreActivationResNet"
    assert judge.metadata["epochs"] == "2"

    network = train_judge(recipe, sample.train, AUGMENTATIONS["mnist"])
    with torch.no_grad():
        logits, features = network(torch.tensor(images).float() / 127.5 - 1)
    assert np.allclose(judge.logits(images), logits.numpy(), atol=1e-4)
    assert np.allclose(judge.features(images), features.numpy(), atol=1e-4)


def test_the_command_refuses_data_that_are_not_the_data_set(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        module.main, ["--data-dir", str(SAMPLE), "--output", str(tmp_path / "judges")]
    )
    assert result.exit_code == 1
    assert "the canonical file" in result.output
    assert not (tmp_path / "judges").exists()
