"""A bundle is written whole and verified, or not at all."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.graphs import Graphs
from export.settings import BundleSettings
from export.verification import Verification, VerificationFailed
from export.writing import ExportError, export_bundle
from serving.bundle import BundleError, Manifest, load_bundle
from tests.tiny_export import (
    LABEL_NAMES,
    random_checkpoint,
    saved,
    small_graphs,
    with_weight,
)
from training.checkpoint import Checkpoint, CheckpointError
from training.model import DiffusionModel
from training.schedule import make_schedule

# The first test that needs the graphs exports them, which a busy machine takes a while for.
pytestmark = pytest.mark.timeout(400)

SETTINGS = BundleSettings("mine", version="2.1.0", sampler="dpmpp_2m", num_steps=7)
NO_FIGURES = Verification()


@pytest.fixture(autouse=True)
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Exporting gives equal bytes every time (test_export_graphs), and takes seconds.
    monkeypatch.setattr("export.writing.export_graphs", lambda model: small_graphs())


@pytest.fixture
def no_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.writing.verify", lambda *arguments: NO_FIGURES)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(random_checkpoint(), tmp_path / "run")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def export(
    checkpoint: Path, output: Path, settings: BundleSettings = SETTINGS, force: bool = False
) -> Manifest:
    return export_bundle(checkpoint, output, settings, force=force, report=lambda _: None)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_server_loads_what_was_written(checkpoint: Path, models: Path) -> None:
    reports: list[Verification] = []
    output = models / "new" / "mine"
    written = export_bundle(checkpoint, output, SETTINGS, report=reports.append)
    bundle = load_bundle(output)
    assert bundle.manifest == written
    assert bundle.embedding_onnx == small_graphs().embedding_onnx
    assert bundle.unet_onnx == small_graphs().unet_onnx
    assert set(content(models)) == {
        f"new/mine/{name}" for name in ("manifest.json", "embedding.onnx", "unet.onnx")
    }
    [report] = reports
    assert written.verification == json.loads(json.dumps(report.to_dict()))
    assert written.verification["passed"] is True


def test_the_manifest_says_what_the_run_and_the_settings_say(
    checkpoint: Path, models: Path, no_verification: None
) -> None:
    manifest = export(checkpoint, models / "mine")
    assert (manifest.name, manifest.version) == ("mine", "2.1.0")
    assert manifest.defaults.model_dump() == {
        "sampler": "dpmpp_2m", "num_steps": 7, "guidance_scale": 1.0,
    }  # fmt: skip
    assert manifest.label_names == LABEL_NAMES
    assert manifest.null_label == 3
    assert manifest.image_shape == (1, 14, 14)
    assert manifest.embedding_width == 16
    np.testing.assert_array_equal(
        manifest.schedule.alphas_cumprod,
        make_schedule(random_checkpoint().config).alphas_cumprod,
    )
    assert manifest.provenance["train_step"] == 10


def test_the_file_names_no_directory_of_this_machine(
    checkpoint: Path, models: Path, repository: Path, no_verification: None
) -> None:
    export(checkpoint, models / "mine")
    for text in content(models).values():
        for path in (checkpoint.parent, models, repository):
            assert str(path).encode() not in text


def test_it_exports_the_ema_weights(
    checkpoint: Path, models: Path, no_verification: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[DiffusionModel] = []

    def note(model: DiffusionModel) -> Graphs:
        given.append(model)
        return small_graphs()

    monkeypatch.setattr("export.writing.export_graphs", note)
    export(checkpoint, models / "mine")
    [model] = given
    assert not model.training
    ema = random_checkpoint().ema_state
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, ema[name])
    tensors = onnx.load_from_string((models / "mine" / "unet.onnx").read_bytes()).graph.initializer
    [weight] = [numpy_helper.to_array(t) for t in tensors if t.name == "conv_in.weight"]
    np.testing.assert_array_equal(weight, ema["unet.conv_in.weight"].numpy())


def test_exporting_twice_gives_equal_files(
    checkpoint: Path, models: Path, no_verification: None
) -> None:
    export(checkpoint, models / "one")
    export(checkpoint, models / "two")
    assert content(models / "one") == content(models / "two")


def test_others_may_read_the_bundle_as_the_umask_says(
    checkpoint: Path, models: Path, no_verification: None
) -> None:
    export(checkpoint, models / "mine")
    assert (models / "mine").stat().st_mode == models.stat().st_mode


def test_a_changed_weight_leaves_nothing_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nudge(array: np.ndarray) -> None:
        array.flat[0] += 0.05

    wrong = with_weight(small_graphs().unet_onnx, "conv_in.weight", nudge)
    monkeypatch.setattr(
        "export.writing.export_graphs",
        lambda model: dataclasses.replace(small_graphs(), unet_onnx=wrong),
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(VerificationFailed, match="unet.onnx"):
        export(checkpoint, tmp_path / "models" / "mine")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("write_manifest", OSError("no space left")),
        ("load_bundle", BundleError("bundle 'x': manifest.json is missing")),
        ("verify", VerificationFailed("a figure is 1", NO_FIGURES)),
    ],
)
def test_a_failure_leaves_everything_as_it_was(
    broken: str,
    error: Exception,
    force: bool,
    checkpoint: Path,
    models: Path,
    no_verification: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if force:
        export(checkpoint, models / "mine")
    before = content(models)

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(f"export.writing.{broken}", fail)
    with pytest.raises(type(error)):
        export(checkpoint, models / "mine", BundleSettings("other"), force)
    assert content(models) == before
    assert [path.name for path in models.iterdir()] == (["mine"] if force else [])


def test_a_bundle_is_replaced_only_by_force(
    checkpoint: Path, models: Path, no_verification: None
) -> None:
    export(checkpoint, models / "mine")
    before = content(models)
    with pytest.raises(ExportError, match="holds a bundle already; --force replaces it"):
        export(checkpoint, models / "mine", BundleSettings("other"))
    assert content(models) == before
    export(checkpoint, models / "mine", BundleSettings("other"), force=True)
    assert load_bundle(models / "mine").manifest.name == "other"
    assert [path.name for path in models.iterdir()] == ["mine"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space left")])
def test_a_replacement_that_is_interrupted_keeps_the_old_bundle(
    error: BaseException,
    checkpoint: Path,
    models: Path,
    no_verification: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export(checkpoint, models / "mine")
    before = content(models)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if "partial" in self.name:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(type(error)):
        export(checkpoint, models / "mine", BundleSettings("other"), force=True)
    assert content(models) == before


def test_what_a_link_names_is_replaced_and_the_link_stays(
    checkpoint: Path, models: Path, no_verification: None
) -> None:
    export(checkpoint, models / "mine")
    (models / "latest").symlink_to(models / "mine")
    export(checkpoint, models / "latest", BundleSettings("other"), force=True)
    assert (models / "latest").is_symlink()
    assert load_bundle(models / "mine").manifest.name == "other"
    assert sorted(path.name for path in models.iterdir()) == ["latest", "mine"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("also", ["manifest.json", "nothing else"])
def test_other_peoples_files_are_never_removed(
    also: str, force: bool, checkpoint: Path, models: Path
) -> None:
    output = models / "mine"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    (output / also).write_text("")
    before = content(models)
    with pytest.raises(ExportError):
        export(checkpoint, output, force=force)
    assert content(models) == before


def test_an_empty_directory_is_free_and_a_file_is_not(
    checkpoint: Path, models: Path, no_verification: None
) -> None:
    (models / "empty").mkdir()
    export(checkpoint, models / "empty")
    assert len(content(models / "empty")) == 3
    (models / "file").write_text("")
    with pytest.raises(ExportError, match="is not a directory"):
        export(checkpoint, models / "file", force=True)


def test_a_run_folder_stands_for_its_newest_checkpoint(
    tmp_path: Path, models: Path, no_verification: None
) -> None:
    for train_step in (10, 2, 9):
        saved(random_checkpoint(train_step), tmp_path / "run")
    manifest = export(tmp_path / "run", models / "mine")
    assert manifest.provenance["train_step"] == 10
    with pytest.raises(CheckpointError, match="no checkpoint in this folder"):
        export(models, models / "other")


@pytest.mark.parametrize(("train_step", "warned"), [(9, True), (10, False)])
def test_an_unfinished_run_exports_with_a_warning(
    train_step: int,
    warned: bool,
    tmp_path: Path,
    models: Path,
    no_verification: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = saved(random_checkpoint(train_step), tmp_path / "run")
    export(path, models / "mine")
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert (models / "mine" / "manifest.json").is_file()
    assert len(warnings) == warned
    assert all("not finished: train step 9 of 10" in warning for warning in warnings)


def with_nan(checkpoint: Checkpoint) -> Checkpoint:
    checkpoint.ema_state["unet.conv_in.bias"][0] = torch.nan
    return checkpoint


def without_a_weight(checkpoint: Checkpoint) -> Checkpoint:
    del checkpoint.ema_state["unet.conv_in.bias"]
    return checkpoint


def without_label_names(checkpoint: Checkpoint) -> Checkpoint:
    del checkpoint.provenance["label_names"]
    return checkpoint


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_nan, "unet.conv_in.bias holds NaN or Inf"),
        (without_a_weight, "its weights are not those of its configuration"),
        (without_label_names, "its provenance has no 'label_names'"),
    ],
)
def test_a_checkpoint_that_cannot_be_right_is_refused(
    spoil: Any, message: str, tmp_path: Path, models: Path
) -> None:
    path = saved(spoil(random_checkpoint()), tmp_path / "run")
    with pytest.raises(CheckpointError, match=message) as caught:
        export(path, models / "mine")
    assert "\n" not in str(caught.value)
    assert not content(models)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BundleSettings("a/b"), "^name: "),
        (BundleSettings("mine", version=""), "^version: "),
        (BundleSettings("mine", num_steps=21), r"defaults.num_steps must be in 1..20, got 21"),
        (BundleSettings("mine", sampler="euler"), "sampler: must be one of ddpm"),
        (BundleSettings("mine", guidance_scale=-1.0), "guidance_scale: "),
    ],
)
def test_a_setting_out_of_range_is_refused_before_verification(
    settings: BundleSettings, message: str, checkpoint: Path, models: Path
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        export(checkpoint, models / "mine", settings)
    assert "\n" not in str(caught.value)
    assert not content(models)


def test_as_many_label_names_as_labels(tmp_path: Path, models: Path) -> None:
    checkpoint = random_checkpoint()
    checkpoint.provenance["label_names"] = ["only one"]
    with pytest.raises(ExportError, match="null_label must be 1"):
        export(saved(checkpoint, tmp_path / "run"), models / "mine")
