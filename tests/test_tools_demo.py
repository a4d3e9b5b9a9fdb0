"""`make demo` as a person runs it, with a tiny model in place of the real one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fakes import write_tiny_bundle


def demo(repository: Path, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, repository / "tools" / "demo.py", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{repository / 'protos'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_draws_a_row_of_ten_for_each_label(
    repository: Path, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    bundle = write_tiny_bundle(
        tmp_path / "tiny", image_shape=shape, label_names=tuple("0123456789")
    )
    done = demo(repository, tmp_path, "--model", str(bundle))
    assert done.returncode == 0, done.stderr
    channels, height, width = shape
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        assert picture.size == (3 * (2 + 10 * (width + 2)), 3 * (2 + 10 * (height + 2)))
        small = np.asarray(picture)[::3, ::3]
    cells = {
        small[y : y + height, x : x + width].tobytes()
        for y in range(2, small.shape[0], height + 2)
        for x in range(2, small.shape[1], width + 2)
    }
    assert len(cells) == 100, "a hundred different images"
    assert re.search(r"^images  100 in [\d.]+ s, \d+ images/s$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == f"picture {tmp_path / 'demo.png'}"


def test_the_same_seed_draws_the_same_picture(repository: Path, tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    for name in ("first", "again"):
        done = demo(repository, tmp_path, f"--model={bundle}", f"--output={name}", "--seed=7")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()


def test_says_why_when_the_server_does_not_start(repository: Path, tmp_path: Path) -> None:
    done = demo(repository, tmp_path, "--model", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "the server did not start" in done.stderr
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo.png").exists()
