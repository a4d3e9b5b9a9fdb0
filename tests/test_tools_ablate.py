"""`make ablate` as a person runs it, on a few real digits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_training import SAMPLE


def ablate(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, repository / "tools" / "ablate.py", *arguments],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    variants = ["--variant", "baseline", "--variant", "widths 32, 32, 64"]
    small = ["--epochs", "0.5", "--seeds", "1", "--num-images", "100", "--threads", "1"]
    output = str(tmp_path_factory.mktemp("ablations"))
    return [*variants, *small, "--data-dir", str(SAMPLE), "--output", output]


def test_one_row_per_change_at_equal_flop_and_finished_runs_are_not_run_again(
    repository: Path, flags: list[str]
) -> None:
    first = ablate(repository, *flags)
    assert first.returncode == 0, first.stderr
    _, _, baseline, wider = (line.split(" | ") for line in first.stdout.splitlines())
    assert baseline[0] == "| baseline"
    assert wider[1] == "`--widths 32 32 64`"
    flop = [float(row[2].removesuffix(" M")) * float(row[3]) for row in (baseline, wider)]
    assert flop[1] == pytest.approx(flop[0], rel=0.03)
    assert all("nan" not in cell for row in (baseline, wider) for cell in row)

    again = ablate(repository, *flags)
    assert again.stdout == first.stdout
    assert "training tiny" in first.stderr
    assert "training" not in again.stderr


def test_a_run_that_fails_ends_it_with_the_command(repository: Path, tmp_path: Path) -> None:
    ended = ablate(repository, "--data-dir", str(tmp_path), "--output", str(tmp_path / "runs"))
    assert ended.returncode == 1
    assert "exit code 1 of:" in ended.stderr.splitlines()[-1]
    assert "training.train" in ended.stderr.splitlines()[-1]
