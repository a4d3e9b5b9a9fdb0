"""The four files of MNIST, in the folder and under the names that torchvision looks for."""

import gzip
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from serving.client.dataset.plan import DatasetPlan
from serving.client.dataset.split_images import SplitImages
from serving.client.dataset.whole_files import whole_file

FOLDER = Path("MNIST", "raw")
_STEMS = {"train": "train", "test": "t10k"}
_UINT8 = 0x08


def write(
    output: Path, plan: DatasetPlan, splits: list[SplitImages], on_images: Callable[[int], None]
) -> None:
    """Writes each file twice, as torchvision's download leaves it: gzipped, and as it is read."""
    for split in splits:
        stem = _STEMS[split.name]
        with ExitStack() as files:
            images = _Twice(files, output / FOLDER / f"{stem}-images-idx3-ubyte")
            labels = _Twice(files, output / FOLDER / f"{stem}-labels-idx1-ubyte")
            images.write(_header(len(split), plan.height, plan.width))
            labels.write(_header(len(split)))
            for rows, pixels in split.chunks():
                images.write(pixels.tobytes())
                labels.write(split.labels[rows].astype(np.uint8).tobytes())
                on_images(len(pixels))


def _header(*shape: int) -> bytes:
    return bytes([0, 0, _UINT8, len(shape)]) + np.array(shape, dtype=">u4").tobytes()


class _Twice:
    """One content in two files: NAME, and NAME.gz without name and time, so that bits repeat."""

    def __init__(self, files: ExitStack, path: Path) -> None:
        self._plain = files.enter_context(whole_file(path))
        zipped = files.enter_context(whole_file(path.with_name(path.name + ".gz")))
        self._gzip = cast(
            "BinaryIO",
            files.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=zipped, mtime=0)),
        )

    def write(self, content: bytes) -> None:
        self._plain.write(content)
        self._gzip.write(content)
