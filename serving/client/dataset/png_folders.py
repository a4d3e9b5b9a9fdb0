"""A folder per class and a PNG per image, as torchvision's ImageFolder and many others read it."""

import re
from collections.abc import Callable
from pathlib import Path

from serving.client.dataset.plan import DatasetPlan
from serving.client.dataset.split_images import SplitImages
from serving.images import encode_png


def class_folders(label_names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a name for each label's folder; sorted by name they are in the labels' order."""
    width = len(str(len(label_names) - 1))
    return tuple(
        f"{label:0{width}d}" + ("" if name == str(label) else f"-{_slug(name)}")
        for label, name in enumerate(label_names)
    )


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def write(
    output: Path, plan: DatasetPlan, splits: list[SplitImages], on_images: Callable[[int], None]
) -> None:
    """Writes SPLIT/CLASS/INDEX.png; INDEX is that of the image under the seed."""
    folders = class_folders(plan.label_names)
    digits = len(str(plan.total - 1))
    for split in splits:
        for folder in folders:
            (output / split.name / folder).mkdir(parents=True, exist_ok=True)
        for rows, chunk in split.chunks():
            for index, label, pixels in zip(
                split.indices[rows], split.labels[rows], chunk, strict=True
            ):
                path = output / split.name / folders[label] / f"{index:0{digits}d}.png"
                path.write_bytes(encode_png(pixels))
            on_images(len(chunk))
