"""From drawn images to a finished data set: room on the disk, files, sums, card."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.client.dataset import card, checksums, idx_files, parquet_files, png_folders
from serving.client.dataset.plan import SPLITS, DatasetPlan
from serving.client.dataset.split_images import SplitImages
from serving.client.dataset.unfinished import (
    FOLDER,
    DatasetError,
    Unfinished,
    require_same_plan,
)
from serving.client.dataset.whole_files import whole_file

_BLOCK_BYTES = 4096  # what a small file takes on most file systems
_PNG_OVERHEAD_BYTES = 128  # signature, chunks and their checksums, and a row filter per row


def finished(output: Path, plan: DatasetPlan) -> dict[str, Any] | None:
    """Returns the card of the data set that is in `output` already; None if it is still to be made.

    Raises:
        DatasetError: something else is there.
    """
    if not output.exists():
        return None
    if not output.is_dir():
        raise DatasetError(f"{output} is not a folder")
    path = output / card.JSON_NAME
    if path.exists() and not (output / FOLDER).exists():
        found: dict[str, Any] = json.loads(path.read_bytes())
        require_same_plan(path, found.get("plan", {}), plan)
        return found
    if any(output.iterdir()) and not (output / FOLDER).exists():
        raise DatasetError(f"{output} is not empty, and what is in it is no data set of this kind")
    return None


def check_plan(plan: DatasetPlan) -> None:
    """Raises DatasetError if a format cannot hold such images."""
    if plan.channels not in (1, 3):
        raise DatasetError(f"images have 1 or 3 channels, {plan.model} draws {plan.channels}")
    if "idx" in plan.formats and plan.channels != 1:
        raise DatasetError("--format idx holds grey images only; try --format png or parquet")
    if "idx" in plan.formats and len(plan.label_names) > 256:
        raise DatasetError("--format idx holds labels 0..255 only; try --format png or parquet")


def check_room(output: Path, plan: DatasetPlan) -> None:
    """Raises DatasetError if the disk is too small for all that will stand on it at one time."""
    there = output.absolute()
    while not there.exists():
        there = there.parent
    begun = output / FOLDER / "images.raw"
    held = begun.stat().st_blocks * 512 if begun.exists() else 0
    needed = plan.total * sum(_bytes_per_image(plan).values()) - held
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DatasetError(
            f"{output} needs up to {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free there;"
            " make room, or give an --output on another disk"
        )


def _bytes_per_image(plan: DatasetPlan) -> dict[str, int]:
    png = plan.image_bytes + plan.height + _PNG_OVERHEAD_BYTES
    sizes = {
        "idx": 2 * (plan.image_bytes + 1),  # plain, and gzipped at the worst
        "png": -(-png // _BLOCK_BYTES) * _BLOCK_BYTES,
        "parquet": png + 32,
    }
    return {"unfinished": plan.image_bytes, **{name: sizes[name] for name in plan.formats}}


def write(
    output: Path,
    plan: DatasetPlan,
    unfinished: Unfinished,
    *,
    on_images: Callable[[int], None],
) -> dict[str, Any]:
    """Writes every file of a data set whose images are all drawn, the card last; returns the card.

    Args:
        output: the folder of the data set.
        plan: what it is.
        unfinished: its images; deleted at the end.
        on_images: told how many images were written; plan.total for each format, all together.
    """
    splits = [SplitImages.of(plan, name, unfinished.images) for name in SPLITS]
    if "idx" in plan.formats:
        idx_files.write(output, plan, splits, on_images)
    if "png" in plan.formats:
        png_folders.write(output, plan, splits, on_images)
    if "parquet" in plan.formats:
        parquet_files.write(output, plan, splits, on_images)
    sums = checksums.write_sums(output, checksums.data_files(output))
    written = card.card(plan, splits, sums)
    for name, text in (
        (card.README_NAME, card.readme(plan, written)),
        (card.JSON_NAME, json.dumps(written, indent=2) + "\n"),
    ):
        with whole_file(output / name) as stream:
            stream.write(text.encode())
    unfinished.remove()
    return written
