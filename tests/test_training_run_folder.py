"""The folder of a run: what stays, what is resumed, what is the best."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_training import tiny_trainer
from training import run_folder
from training.checkpoint import Checkpoint, CheckpointError, checkpoint_path, save_checkpoint
from training.disk import DiskFull
from training.run_folder import (
    BEST_NAME,
    Best,
    load_newest_whole,
    remove_older,
    require_unused,
    warn_if_short_of_room,
)

FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint before its first train step."""
    return tiny_trainer(tmp_path_factory.mktemp("run")).checkpoint()


def write(folder: Path, checkpoint: Checkpoint, step: int, **validation: float) -> Path:
    provenance = checkpoint.provenance | {"validation": {"train_step": step, **validation}}
    path = checkpoint_path(folder, step)
    save_checkpoint(dataclasses.replace(checkpoint, train_step=step, provenance=provenance), path)
    return path


# --- What is resumed -------------------------------------------------------------------------


def damage(path: Path) -> None:
    """One byte of one number, in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_one_flipped_bit_is_noticed_and_the_checkpoint_before_is_used(
    tmp_path: Path, empty: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20, 30):
        write(tmp_path, empty, step)
    damage(checkpoint_path(tmp_path, 30))
    damage(checkpoint_path(tmp_path, 20))
    path, checkpoint = load_newest_whole(tmp_path)
    assert path == checkpoint_path(tmp_path, 10)
    assert checkpoint.train_step == 10
    assert [f"{checkpoint_path(tmp_path, step)}: " in caplog.text for step in (30, 20, 10)] == [
        True, True, False,
    ]  # fmt: skip
    assert "the checksum of its numbers is another" in caplog.text
    assert len(list(tmp_path.iterdir())) == 3


def test_the_best_is_resumed_when_nothing_else_is_whole(tmp_path: Path, empty: Checkpoint) -> None:
    shutil.copy(write(tmp_path, empty, 10), tmp_path / BEST_NAME)
    damage(checkpoint_path(tmp_path, 10))
    assert load_newest_whole(tmp_path)[0] == tmp_path / BEST_NAME


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        load_newest_whole(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        load_newest_whole(tmp_path / "not there")


@pytest.mark.parametrize("name", ["checkpoint-00000007.safetensors", BEST_NAME])
def test_the_folder_of_another_run_is_refused(tmp_path: Path, name: str) -> None:
    require_unused(tmp_path)
    require_unused(tmp_path / "not there")
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"holds a run already .{name}."):
        require_unused(tmp_path)


# --- What stays ------------------------------------------------------------------------------


def test_later_checkpoints_are_neither_removed_nor_counted(tmp_path: Path) -> None:
    for step in (100, 200, 300, 900):
        checkpoint_path(tmp_path, step).touch()
    remove_older(tmp_path, 300)
    kept = sorted(int(path.stem.rpartition("-")[2]) for path in tmp_path.iterdir())
    assert kept == [200, 300, 900]


# --- What is the best ------------------------------------------------------------------------


def test_the_best_is_a_second_name_of_a_checkpoint(tmp_path: Path, empty: Checkpoint) -> None:
    best = Best(tmp_path, "eps_mse")
    assert best.beaten_by({"validation_eps_mse": 9e9})
    assert not best.beaten_by({})
    assert not best.beaten_by({"validation_frechet": 0.0})
    path = write(tmp_path, empty, 10, validation_eps_mse=0.5)
    for _ in range(2):  # again: the same file under the same name
        best.take(path, {"validation_eps_mse": 0.5})
    assert (tmp_path / BEST_NAME).samefile(path)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, BEST_NAME}
    assert not best.beaten_by({"validation_eps_mse": 0.5})
    assert best.beaten_by({"validation_eps_mse": 0.4999})


def no_links(*_: object, **__: object) -> None:
    raise OSError("Operation not permitted")


def test_where_there_are_no_hard_links_the_best_is_a_copy(
    tmp_path: Path, empty: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    path = write(tmp_path, empty, 10)
    Best(tmp_path, "eps_mse").take(path, {"validation_eps_mse": 0.5})
    copy = tmp_path / BEST_NAME
    assert copy.read_bytes() == path.read_bytes()
    assert not copy.samefile(path)


def test_a_copy_that_does_not_fit_leaves_the_best_as_it_was(
    tmp_path: Path, empty: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        (tmp_path / f"{BEST_NAME}.partial").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(shutil, "copyfile", no_room)
    (tmp_path / BEST_NAME).write_bytes(b"before")
    path = write(tmp_path, empty, 10)
    with pytest.raises(DiskFull, match=f"{BEST_NAME}: no room for its {path.stat().st_size:,} b"):
        Best(tmp_path, "eps_mse").take(path, {"validation_eps_mse": 0.5})
    assert (tmp_path / BEST_NAME).read_bytes() == b"before"
    assert not (tmp_path / f"{BEST_NAME}.partial").exists()


@pytest.mark.parametrize(("select_by", "value"), [("eps_mse", 0.5), ("frechet", 7.0)])
def test_what_the_best_is_worth_stands_in_it(
    tmp_path: Path, empty: Checkpoint, select_by: str, value: float
) -> None:
    path = write(tmp_path, empty, 10, validation_eps_mse=0.5, validation_frechet=7.0)
    path.rename(tmp_path / BEST_NAME)
    best = Best(tmp_path, select_by)
    figure = f"validation_{select_by}"
    assert not best.beaten_by({figure: value})
    assert best.beaten_by({figure: value - 0.001})


def test_a_best_without_the_figure_is_beaten_by_any(tmp_path: Path, empty: Checkpoint) -> None:
    write(tmp_path, empty, 10, validation_eps_mse=0.5).rename(tmp_path / BEST_NAME)
    assert Best(tmp_path, "frechet").beaten_by({"validation_frechet": 1e6})


def test_a_damaged_best_is_named_and_beaten_by_any(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / BEST_NAME).write_bytes(b"")
    assert Best(tmp_path, "eps_mse").beaten_by({"validation_eps_mse": 1e6})
    assert f"{tmp_path / BEST_NAME}: not a whole checkpoint" in caplog.text


# --- Room ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free_in_checkpoints", "warned"), [(4.5, False), (3.5, True)])
def test_too_little_room_for_a_runs_checkpoints_is_said_before_it_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free_in_checkpoints: float,
    warned: bool,
) -> None:
    trainer = tiny_trainer(tmp_path)
    size = 16 * sum(parameter.numel() for parameter in trainer.model.parameters())
    monkeypatch.setattr(run_folder, "free_bytes", lambda _: int(free_in_checkpoints * size))
    warn_if_short_of_room(tmp_path / "not there yet", trainer.model)
    assert bool(caplog.messages) == warned
    for message in caplog.messages:
        assert f"{int(3.5 * size):,} bytes are free" in message
        assert f"need {4 * size:,} more ({size:,} each)" in message


def test_the_estimate_of_a_checkpoints_size_is_close(tmp_path: Path, monkeypatch: Any) -> None:
    trainer = tiny_trainer(tmp_path, optimizer="adamw")
    trainer.run_train_step()
    save_checkpoint(trainer.checkpoint(), tmp_path / "it")
    size = 16 * sum(parameter.numel() for parameter in trainer.model.parameters())
    assert size == pytest.approx((tmp_path / "it").stat().st_size, rel=0.1)


def test_checkpoints_that_are_there_need_no_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tiny_trainer(tmp_path)
    size = 16 * sum(parameter.numel() for parameter in trainer.model.parameters())
    (tmp_path / "checkpoint-00000001.safetensors").write_bytes(bytes(size))
    monkeypatch.setattr(run_folder, "free_bytes", lambda _: int(3.5 * size))
    warn_if_short_of_room(tmp_path, trainer.model)
    assert not caplog.messages
