"""Training and export in one command: flags of training in, a bundle out."""

import re
from pathlib import Path

import pytest

from serving.bundle import load_bundle
from tests.tiny_training import tiny_flags
from tools.train_bundle import main

NOT_EVEN_ROOTS = Path("/proc")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.timeout(400)  # exports and verifies, which a busy machine takes a while for
def test_a_run_becomes_the_bundle_of_the_same_name() -> None:
    assert main(tiny_flags(Path("runs/mine"))) == 0
    bundle = load_bundle(Path("models/mine"))
    assert bundle.manifest.name == "mine"
    assert bundle.manifest.defaults.sampler == "ddim_stochastic"
    mode = Path("models/mine/unet.onnx").stat().st_mode
    assert mode & 0o044 == 0o044, "the server runs as somebody else"


def test_a_bundle_that_is_there_is_named_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("models/mine").mkdir(parents=True)
    assert main(tiny_flags(Path("runs/mine"))) == 1
    assert capsys.readouterr().err == (
        "error: models/mine is there already; name another --output\n"
    )
    assert not Path("runs").exists()


def test_models_that_nobody_may_write_to_are_named_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.train_bundle.MODELS", NOT_EVEN_ROOTS)
    assert main(tiny_flags(Path("runs/mine"))) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: user \d+ cannot write to /(proc)?: .+\n", error)
    assert not Path("runs").exists()


def test_what_ends_training_ends_it_all() -> None:
    assert main(tiny_flags(Path("runs/mine"), data_dir=Path("nowhere"))) == 1
    assert not Path("models").exists()


def test_a_dry_run_exports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tiny_flags(Path("runs/mine"), dry_run=True)) == 0
    assert '"epochs"' in capsys.readouterr().out
    assert not Path("models").exists()
