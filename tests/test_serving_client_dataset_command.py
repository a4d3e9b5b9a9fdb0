"""`python -m serving.client dataset`: files that others read, the same whatever interrupted it."""

import gzip
import importlib.util
import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet
from torchvision.datasets import MNIST, ImageFolder

from serving.client import Client
from serving.client.__main__ import main
from serving.images import decode_png
from tests.client_harness import nobody_listening
from tests.fakes import write_tiny_bundle
from tests.server_process import ServerProcess, environment, running_server

COUNT, TEST_COUNT = 40, 10
IMAGES_TOTAL = "diffusion_images_total"
FORMATS = ("--format", "idx", "--format", "png", "--format", "parquet")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
    with running_server(bundle, flags=("--max-images-per-request", "7")) as running:
        yield running


@pytest.fixture(scope="module")
def output(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data set in all three formats."""
    folder = tmp_path_factory.mktemp("sets") / "synthetic"
    ended = run(server.target, folder, *FORMATS)
    assert ended.exit_code == 0, ended.output
    assert "40 training and 10 test images" in ended.output
    assert "tiny 1.0.0, ddpm 4 steps, guidance 1, seed 3" in ended.output
    return folder


def arguments(target: str, output: Path, *more: object) -> list[str]:
    asked = ("--count", COUNT, "--test-count", TEST_COUNT, "--seed", 3, "--labels", "0=1,2=3")
    return ["dataset", "--target", target, "--output", str(output), *map(str, (*asked, *more))]


def run(target: str, output: Path, *more: object) -> Result:
    return CliRunner().invoke(main, arguments(target, output, *more))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def images(server: ServerProcess) -> np.ndarray:
    """What the server itself draws for each index: labels in blocks, the training images first."""
    blocks = ((0, 0, 10), (2, 10, 30), (0, 40, 3), (2, 43, 7))
    with Client(server.target) as client:
        drawn = [
            image.pixels[:, :, 0]
            for label, first, count in blocks
            for start in range(first, first + count, 5)
            for image in client.generate(
                label, min(5, first + count - start), seed=3, first_index=start
            ).images
        ]
    return np.stack(drawn)


def images_of(server: ServerProcess) -> float:
    """How many images the server has finished."""
    return sum(value for (name, _), value in server.metrics().items() if name == IMAGES_TOTAL)


def row_order(output: Path) -> tuple[np.ndarray, np.ndarray]:
    """The index in each row, as the names in the Parquet files tell them."""
    splits = (
        parquet.read_table(output / "data" / f"{split}-00000-of-00001.parquet")
        for split in ("train", "test")
    )
    train, test = (
        np.array([int(image["path"][:-4]) for image in table["image"].to_pylist()])
        for table in splits
    )
    return train, test


def test_torchvision_loads_the_idx_files_as_they_are(server: ServerProcess, output: Path) -> None:
    expected = images(server)
    for train, order in zip((True, False), row_order(output), strict=True):
        loaded = MNIST(output, train=train, download=False)
        assert np.array_equal(loaded.data.numpy(), expected[order])
        in_order = np.repeat([0, 2, 0, 2], [10, 30, 3, 7])
        assert loaded.targets.tolist() == in_order[order].tolist()


def test_the_gzipped_files_hold_the_same_and_no_name_and_no_time(output: Path) -> None:
    zipped = sorted((output / "MNIST" / "raw").glob("*.gz"))
    assert [path.name for path in zipped] == [
        "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
    ]  # fmt: skip
    for path in zipped:
        content = path.read_bytes()
        assert gzip.decompress(content) == path.with_suffix("").read_bytes()
        assert content[3] == 0, "flags: no file name"
        assert content[4:8] == bytes(4), "time of modification"


def test_image_folder_reads_the_png_files_with_the_same_labels(
    server: ServerProcess, output: Path
) -> None:
    expected = images(server)
    for split, rows in (("train", range(40)), ("test", range(40, 50))):
        loaded = ImageFolder(str(output / split), allow_empty=True)
        assert loaded.classes == ["0-zero", "1-one", "2-two"]
        assert [int(Path(path).stem) for path, _ in loaded.samples] == list(rows)
        for path, label in loaded.samples:
            index = int(Path(path).stem)
            assert np.array_equal(decode_png(Path(path).read_bytes())[:, :, 0], expected[index])
            assert label == (0 if index < 10 or 40 <= index < 43 else 2)


def test_parquet_has_the_schema_that_hugging_faces_datasets_read(
    server: ServerProcess, output: Path
) -> None:
    expected = images(server)
    for split, order in zip(("train", "test"), row_order(output), strict=True):
        table = parquet.read_table(output / "data" / f"{split}-00000-of-00001.parquet")
        image = table.schema.field("image").type
        assert {image[i].name: str(image[i].type) for i in range(2)} == {
            "bytes": "binary",
            "path": "string",
        }
        assert str(table.schema.field("label").type) == "int64"
        assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"] == {
            "image": {"_type": "Image"},
            "label": {"names": ["zero", "one", "two"], "_type": "ClassLabel"},
        }
        for index, row in zip(order, table.to_pylist(), strict=True):
            assert np.array_equal(decode_png(row["image"]["bytes"])[:, :, 0], expected[index])


def test_the_card_holds_what_made_it_and_its_command_makes_it_again(
    server: ServerProcess, output: Path, tmp_path: Path
) -> None:
    card = json.loads((output / "dataset.json").read_text())
    assert card["plan"]["model_version"] == "1.0.0"
    assert card["plan"]["sampler"] == "ddpm"
    assert card["splits"]["train"]["label_counts"] == [10, 0, 30]
    readme = (output / "README.md").read_text()
    assert card["command"] in readme
    assert card["splits"]["test"]["pixels_sha256"] in readme
    again = tmp_path / "again"
    command = shlex.split(card["command"].replace("OUTPUT", str(again)))[3:]
    ended = CliRunner().invoke(main, [*command, "--target", server.target])
    assert ended.exit_code == 0, ended.output
    assert contents(again) == contents(output)


def test_a_scale_that_no_float32_has_is_the_same_by_default_and_by_name(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["defaults"]["guidance_scale"] = 1.7
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with running_server(bundle) as server:
        assert run(server.target, tmp_path / "new").exit_code == 0
        again = run(server.target, tmp_path / "new", "--guidance-scale", 1.7)
    assert again.output == f"{tmp_path / 'new'} is complete already\n"
    card = json.loads((tmp_path / "new" / "dataset.json").read_text())
    assert card["plan"]["guidance_scale"] == 1.7
    assert "--guidance-scale 1.7 " in card["command"]


def test_the_sums_are_those_of_all_files(output: Path) -> None:
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=output, check=False
    )
    assert checked.returncode == 0
    listed = {line.split("  ")[1] for line in (output / "SHA256SUMS").read_text().splitlines()}
    assert listed == contents(output).keys() - {"SHA256SUMS", "README.md", "dataset.json"}


KILLED_AFTER_THREE = """
import os, signal, sys
from serving.client.__main__ import main
from serving.client.dataset.unfinished import Unfinished

keep, spans = Unfinished.keep, []

def keep_three(self, span, pixels):
    keep(self, span, pixels)
    spans.append(span)
    if len(spans) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Unfinished.keep = keep_three
main(sys.argv[1:])
"""


def test_a_run_that_was_killed_goes_on_and_the_result_is_equal_to_the_bit(
    server: ServerProcess, output: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "synthetic"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_THREE, *arguments(server.target, folder, *FORMATS)],
        env=environment(),
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "dataset.json").exists()
    kept = len((folder / ".unfinished" / "journal.txt").read_text().splitlines())
    before = images_of(server)
    ended = run(server.target, folder, *FORMATS, "--in-flight", 1)
    assert ended.exit_code == 0, ended.output
    assert contents(folder) == contents(output)
    drawn = images_of(server) - before
    assert 0 < drawn <= COUNT + TEST_COUNT - 3 * kept, "each span has three images at least"


def test_a_finished_data_set_is_left_as_it_is(server: ServerProcess, output: Path) -> None:
    before = contents(output)
    ended = run(server.target, output, *FORMATS)
    assert ended.exit_code == 0
    assert ended.output == f"{output} is complete already\n"
    assert contents(output) == before


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    [line] = result.stderr.splitlines()
    return line


def test_a_folder_that_holds_something_else_is_not_touched(
    server: ServerProcess, output: Path, tmp_path: Path
) -> None:
    assert "seed is 3 there and 4 here" in refused(
        run(server.target, output, *FORMATS, "--seed", 4)
    )
    assert "formats is" in refused(run(server.target, output))
    (tmp_path / "thesis.tex").touch()
    assert "is not empty" in refused(run(server.target, tmp_path))
    assert "is not a folder" in refused(run(server.target, tmp_path / "thesis.tex"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_too_small_a_disk_is_said_before_anything_is_drawn(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    assert "are free there; make room" in refused(run(server.target, tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50 * (16 + 34)))
    assert run(server.target, tmp_path / "new").exit_code == 0


def test_without_pyarrow_parquet_says_what_to_install(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    line = refused(run(server.target, tmp_path / "new", "--format", "parquet"))
    assert "pip install 'simple-diffusion[parquet]'" in line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--labels", "3=1"), "label 3 is not in 0..2"),
        (("--model", "large"), "the server has tiny, not 'large'"),
        (("--count", 0), "0 is not in the range"),
        (("--count", 2**31 - 1, "--test-count", 2), "together"),
        (("--format", "zip"), "'zip' is not one of"),
    ],
)
def test_arguments_that_make_no_sense_are_a_usage_error(
    server: ServerProcess, tmp_path: Path, more: tuple[object, ...], message: str
) -> None:
    ended = run(server.target, tmp_path / "new", *more)
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert not (tmp_path / "new").exists()


def test_no_server_is_one_line(tmp_path: Path) -> None:
    with nobody_listening() as nobody:
        line = refused(run(nobody, tmp_path / "new", "--max-attempts", 1))
    assert line.startswith(f"error: no server answers at {nobody}; start one with")


def test_images_that_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "colour", image_shape=(3, 4, 4))
    with running_server(bundle) as server:
        assert "grey images only" in refused(run(server.target, tmp_path / "new"))
        ended = run(server.target, tmp_path / "new", "--format", "png")
        assert ended.exit_code == 0, ended.output
    assert len(list((tmp_path / "new").rglob("*.png"))) == COUNT + TEST_COUNT
