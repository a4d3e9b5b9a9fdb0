"""An evaluation on disk: one page, its pictures, one JSON, and the manifest's section."""

import json
from pathlib import Path

from evaluation.measuring import Evaluator
from evaluation.page import CURVE, DENOISING, PAIRS, SAMPLES, quality_page
from evaluation.pictures import (
    Pictures,
    closest_images,
    curve_picture,
    denoising_picture,
    pairs_picture,
    samples_picture,
)
from evaluation.results import Quality
from evaluation.rows import Result
from serving.bundle import load_bundle, write_manifest


def to_json(result: Result) -> str:
    """A result as the text of a JSON file."""
    return json.dumps(result.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"


def draw_pictures(evaluator: Evaluator, quality: Quality) -> Pictures:
    """The pictures that the page shows, of the images that were measured."""
    drawn = evaluator.drawn(quality.setting, quality.seeds[0], quality.num_images)
    train = evaluator.dataset.train.images[:, None]
    pictures = {
        SAMPLES: samples_picture(drawn.images, drawn.labels, evaluator.num_labels),
        DENOISING: denoising_picture(quality.denoising_error),
    }
    if quality.memorisation.closest:
        pairs = closest_images(quality.memorisation.closest, drawn.images, train)
        pictures[PAIRS] = pairs_picture(*pairs)
    if quality.curve is not None:
        pictures[CURVE] = curve_picture(quality.curve)
    return pictures


def write_report(quality: Quality, pictures: Pictures, directory: Path) -> Path:
    """Write DIRECTORY/NAME.md, DIRECTORY/NAME.json and DIRECTORY/NAME/*.png.

    Args:
        quality: what was measured; NAME is its model's.
        pictures: from ``draw_pictures``.
        directory: made if need be.

    Returns:
        The path of the page.
    """
    name = quality.model.name
    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in pictures.items():
        (folder / file).write_bytes(content)
    (directory / f"{name}.json").write_text(to_json(quality), encoding="utf-8")
    page = directory / f"{name}.md"
    page.write_text(quality_page(quality, name), encoding="utf-8")
    return page


def update_manifest(quality: Quality, model: Path) -> Path:
    """Write the numbers into a bundle's manifest, but those that the clock makes.

    Args:
        quality: of this bundle.
        model: models/NAME.

    Returns:
        The path of the manifest.

    Raises:
        BundleError: the bundle cannot be read.
        ValueError: the bundle is not the one that was measured.
    """
    manifest = load_bundle(model).manifest
    files = {name: entry.sha256 for name, entry in manifest.files.items()}
    if files != quality.model.files:
        raise ValueError(f"{model} changed while it was measured; its manifest stays as it is")
    measured = manifest.model_copy(update={"quality": quality.for_manifest()})
    return write_manifest(measured, model)
