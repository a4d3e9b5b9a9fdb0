"""``python -m export`` as a person meets it: what it prints, where, and how it ends."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from export.__main__ import main
from export.report import Check
from export.verification import Verification, VerificationFailed
from serving.bundle import load_bundle
from tests.tiny_export import random_checkpoint, saved, small_graphs

# The first test that needs the graphs exports them, which a busy machine takes a while for.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(random_checkpoint(), tmp_path / "run")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_it_prints_the_table_and_writes_the_bundle(
    checkpoint: Path, tmp_path: Path, repository: Path
) -> None:
    output = tmp_path / "models" / "small"
    done = subprocess.run(
        [sys.executable, "-m", "export", "--checkpoint", checkpoint.parent, "--output", output],
        cwd=tmp_path,  # the bytes do not depend on it
        env={**os.environ, "PYTHONPATH": str(repository), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["check", "measured", "required"]
    assert sum(line.endswith("  ok") for line in lines) == 22
    assert lines[-1].startswith(f"wrote {output}: small 1.0.0, 0.")
    assert "FAILED" not in done.stdout
    assert done.stderr.splitlines() == [
        "exporting the EMA weights of train step 10",
        "verifying against PyTorch; a minute or two for a network of full size",
    ]
    bundle = load_bundle(output)
    assert bundle.manifest.name == "small"
    assert bundle.manifest.defaults.model_dump() == {
        "sampler": "ddpm", "num_steps": 10, "guidance_scale": 1.0,
    }  # fmt: skip
    assert bundle.unet_onnx == small_graphs().unet_onnx
    assert bundle.embedding_onnx == small_graphs().embedding_onnx


def test_a_failed_verification_prints_the_table_and_ends_with_1(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        found = Verification([Check("difference", 0.5, at_most=1e-4)])
        raise VerificationFailed("difference is 0.5", found)

    monkeypatch.setattr("export.writing.export_graphs", lambda model: small_graphs())
    monkeypatch.setattr("export.writing.verify", fail)
    result = run("--checkpoint", checkpoint, "--output", tmp_path / "models" / "mine")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].split() == [
        "difference", "0.5", "at", "most", "0.0001", "FAILED",
    ]  # fmt: skip
    assert result.stderr.splitlines()[-1] == "error: verification failed: difference is 0.5"
    assert not (tmp_path / "models").exists()


def error_of(result: Result) -> str:
    """The one line that an error is."""
    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    return str(line)


def test_a_truncated_checkpoint_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    line = error_of(run("--checkpoint", checkpoint, "--output", tmp_path / "models" / "mine"))
    assert line.startswith(f"error: {checkpoint}: not a whole checkpoint of this project")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["missing.safetensors", "models"])
def test_no_checkpoint_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    line = error_of(run("--checkpoint", tmp_path / name, "--output", tmp_path / "mine"))
    assert line.startswith(f"error: {tmp_path / name}: no")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_taken_output_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    line = error_of(run("--checkpoint", checkpoint, "--output", tmp_path / "mine"))
    assert line == f"error: {tmp_path / 'mine'} holds a bundle already; --force replaces it"


def test_an_output_that_cannot_be_written_is_one_line_before_any_work(checkpoint: Path) -> None:
    line = error_of(run("--checkpoint", checkpoint, "--output", "/proc/mine"))  # not even by root
    assert re.fullmatch(r"error: user \d+ cannot write to /(proc)?: .+", line)


def test_help_comes_without_pytorch(repository: Path) -> None:
    blocked = "import sys; sys.modules['torch'] = None"
    program = f"{blocked}; from export.__main__ import main; main(['--help'])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for flag in ("--checkpoint", "--output", "--name", "--version", "--sampler", "--num-steps"):
        assert flag in done.stdout
    assert "default: ddpm" in " ".join(done.stdout.split())
