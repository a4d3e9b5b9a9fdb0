"""Checkpoints: whole or not there, and only for the run that wrote them."""

import dataclasses
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_training import (
    assert_equal_to_the_bit,
    small_digits,
    tiny_config,
    tiny_trainer,
)
from training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    ema_model,
    load_checkpoint,
    newest_checkpoint,
    read_provenance,
    require_same_run,
    save_checkpoint,
)
from training.config import FREE_ON_RESUME, from_dict, to_dict
from training.muon import is_hidden_kernel


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """After two train steps."""
    trainer = tiny_trainer(tmp_path_factory.mktemp("run"))
    for _ in range(2):
        trainer.run_train_step()
    return trainer.checkpoint()


def test_a_checkpoint_reads_back_as_it_was_written(trained: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint-00000002.safetensors"
    save_checkpoint(trained, path)
    read = load_checkpoint(path)
    assert_equal_to_the_bit(read, trained)
    assert read.config == trained.config
    assert read.provenance == trained.provenance
    assert read.train_step == 2


def test_the_provenance_counts_the_labels(trained: Checkpoint) -> None:
    counts = np.bincount(small_digits().train.labels, minlength=10)
    assert trained.provenance["dataset_label_counts"] == counts.tolist()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_optimizer_state_is_complete(optimizer: str, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, optimizer=optimizer)
    trainer.run_train_step()
    saved = trainer.checkpoint()
    kernels = sum(map(is_hidden_kernel, trainer.model.parameters())) if optimizer == "muon" else 0
    others = len(list(trainer.model.parameters())) - kernels
    keys = [name.partition(".")[2] for name in saved.optimizer_state]
    assert keys.count("momentum_buffer") == kernels
    assert {keys.count(key) for key in ("step", "exp_avg", "exp_avg_sq")} == {others}
    assert len(keys) == kernels + 3 * others


def test_a_run_from_before_the_choice_of_optimizer_was_adamw() -> None:
    plain = to_dict(tiny_config(Path("run")))
    del plain["optimizer"]
    assert from_dict(plain).optimizer == "adamw"


def test_a_checkpoint_can_be_read_by_whom_the_umask_lets(
    trained: Checkpoint, tmp_path: Path
) -> None:
    save_checkpoint(trained, tmp_path / "it")
    (tmp_path / "plain").touch()
    assert (tmp_path / "it").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_crash_while_writing_leaves_the_old_checkpoint(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint_path(tmp_path, 2)
    save_checkpoint(trained, path)
    old = path.read_bytes()

    def crash(_descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    for crashed in (path, checkpoint_path(tmp_path, 3)):
        with pytest.raises(OSError, match="no space left"):
            save_checkpoint(dataclasses.replace(trained, train_step=3), crashed)
    assert path.read_bytes() == old
    assert newest_checkpoint(tmp_path) == path
    assert load_checkpoint(path).train_step == 2


def test_the_newest_checkpoint_is_the_one_of_the_highest_train_step(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    assert newest_checkpoint(tmp_path) is None
    for step in (500, 12_000, 999):
        checkpoint_path(tmp_path, step).touch()
    checkpoint_path(tmp_path, 13_000).with_suffix(".safetensors.partial").touch()
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 12_000)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999999])
def test_a_truncated_checkpoint_is_refused(
    trained: Checkpoint, tmp_path: Path, share: float
) -> None:
    path = tmp_path / "it.safetensors"
    save_checkpoint(trained, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"it\.safetensors: not a whole checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.999])
def test_one_flipped_bit_is_noticed(trained: Checkpoint, tmp_path: Path, share: float) -> None:
    path = tmp_path / "it.safetensors"
    save_checkpoint(trained, path)
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="the checksum of its numbers is another"):
        load_checkpoint(path)


def test_a_checkpoint_from_before_there_was_a_checksum_is_read(
    trained: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "it.safetensors"
    save_checkpoint(trained, path)
    rewrite_header(path, "crc32", None)
    assert_equal_to_the_bit(load_checkpoint(path), trained)


def test_the_provenance_can_be_read_by_itself(trained: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    save_checkpoint(trained, path)
    assert read_provenance(path) == trained.provenance
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        read_provenance(path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(os.urandom(4096))
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="format version none, expected 1"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "other")


def rewrite_header(path: Path, name: str, value: str | None) -> None:
    """Change one entry of a safetensors file's metadata, or remove it (None)."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][name] = value
    if value is None:
        del header["__metadata__"][name]
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + content[8 + length :])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format_version", "2", "format version 2, expected 1"),
        ("config", "{", "not a whole checkpoint"),
        ("config", '{"model": {"widths": [16, 32], "colour": 1}}', "not a whole checkpoint"),
        ("train_step", "many", "not a whole checkpoint"),
    ],
)
def test_a_header_of_another_kind_is_refused(
    trained: Checkpoint, tmp_path: Path, name: str, value: str, message: str
) -> None:
    path = tmp_path / "it"
    save_checkpoint(trained, path)
    rewrite_header(path, name, value)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("preset", "base"),
        ("dataset", "fashion_mnist"),
        ("allow_other_data", False),
        ("epochs", 3.0),
        ("batch_size", 4),
        ("seed", 1),
        ("num_train_timesteps", 500),
        ("schedule", "linear"),
        ("t_sampling", "uniform"),
        ("label_dropout", 0.2),
        ("learning_rate", 1e-4),
        ("warmup_fraction", 0.2),
        ("adam_beta1", 0.8),
        ("adam_beta2", 0.999),
        ("weight_decay", 0.1),
        ("gradient_clip", 2.0),
        ("ema_relative_width", 0.1),
        ("precision", "bf16"),
        ("model.image_channels", 3),
        ("model.image_size", 32),
        ("model.num_labels", 12),
        ("model.widths", (16, 48)),
        ("model.blocks_per_resolution", 2),
        ("model.middle_blocks", 2),
        ("model.attention", False),
        ("model.attention_head_width", 32),
        ("model.groups", 4),
        ("model.sinusoidal_width", 32),
        ("model.embedding_width", 32),
        ("model.dropout", 0.1),
        ("model.patch_size", 7),
        ("model.prediction", "v"),
        ("loss_weighting", "min_snr"),
        ("optimizer", "adamw"),
        ("muon_learning_rate", 0.01),
    ],
)
def test_another_configuration_is_refused_by_the_name_of_the_field(name: str, value: Any) -> None:
    saved = tiny_config(Path("run"))
    asked = tiny_config(Path("run"), **{name.removeprefix("model."): value})
    with pytest.raises(CheckpointError) as refused:
        require_same_run(saved, asked)
    message = str(refused.value)
    assert message.startswith(f"cannot resume another configuration: {name}: the checkpoint has ")
    shown = list(value) if isinstance(value, tuple) else value
    assert message.endswith(f", asked for {shown!r}")
    assert message.count("asked for") == 1


def test_every_field_that_differs_is_named() -> None:
    asked = tiny_config(Path("run"), seed=1, groups=4)
    with pytest.raises(CheckpointError, match=r"model\.groups: .*; seed: "):
        require_same_run(tiny_config(Path("run")), asked)


def test_what_does_not_change_a_train_step_may_change() -> None:
    changed: dict[str, Any] = {
        "data_dir": Path("elsewhere"),
        "resume": True,
        "dry_run": True,
        "device": "auto",
        "num_threads": 2,
        "memory_format": "contiguous",
        "log_every": 3,
        "checkpoint_every": 3,
        "sample_every": 3,
        "sample_num_steps": 3,
        "validate_every": 3,
        "validate_num_images": 30,
        "select_by": "frechet",
        "gradient_accumulation": 2,
        "compile": True,
        "deterministic": True,
        "overfit_one_batch": 3,
        "tensorboard": True,
        "stop_after": 3,
    }
    assert {*changed, "output"} == FREE_ON_RESUME
    require_same_run(tiny_config(Path("a")), tiny_config(Path("b"), **changed))


def test_the_exported_network_has_the_ema_weights_and_is_in_eval_mode(trained: Checkpoint) -> None:
    model = ema_model(trained)
    state = model.state_dict()
    assert state.keys() == trained.ema_state.keys()
    assert all(torch.equal(state[name], value) for name, value in trained.ema_state.items())
    assert not all(torch.equal(state[name], value) for name, value in trained.model_state.items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
