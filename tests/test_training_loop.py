"""The training loop: it learns, resumes to the bit, stops cleanly, and loses nothing good."""

import dataclasses
import hashlib
import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_training import (
    TRAIN_STEPS,
    assert_equal_to_the_bit,
    read_log,
    small_digits,
    tiny_config,
    tiny_trainer,
)
from training.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint
from training.config import TrainConfig
from training.datasets import DATASETS, Dataset, Split
from training.device import Processes, resolve_placement
from training.loop import (
    Interrupted,
    Trainer,
    TrainingDiverged,
    batch_indices,
    learning_rate_factor,
    make_schedule,
    total_train_steps,
    train,
)


def run(config: TrainConfig, dataset: Dataset | None = None) -> Path:
    torch.set_num_threads(1)
    return train(config, dataset or small_digits(), resolve_placement(config), Processes())


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("checkpoint-*")
    }


# --- What a run is made of -------------------------------------------------------------------


def test_each_epoch_sees_every_image_once_in_its_own_order() -> None:
    config = tiny_config(Path("run"), batch_size=8)
    stream = np.concatenate([batch_indices(config, step, 20) for step in range(1, 11)])
    epochs = stream.reshape(4, 20)  # the second batch of 8 ends the first epoch in its middle
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = batch_indices(dataclasses.replace(config, seed=1), 1, 20)
    assert not np.array_equal(other, stream[:8])


def test_a_batch_may_be_larger_than_the_data() -> None:
    indices = batch_indices(tiny_config(Path("run"), batch_size=50), 1, 20)
    assert set(np.bincount(indices).tolist()) == {2, 3}


@pytest.mark.parametrize(("epochs", "expected"), [(2.0, 125), (0.16, 10), (1e-6, 1)])
def test_epochs_become_train_steps(epochs: float, expected: int) -> None:
    assert total_train_steps(tiny_config(Path("run"), epochs=epochs), 500) == expected


def test_the_learning_rate_warms_up_linearly_and_decays_as_a_cosine_to_zero() -> None:
    config = tiny_config(Path("run"), warmup_fraction=0.1)
    factors = [learning_rate_factor(config, step, 100) for step in range(1, 101)]
    assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    expected = [0.5 * (1 + math.cos(math.pi * i / 90)) for i in range(91)]
    assert factors[9:] == pytest.approx(expected)


@pytest.mark.parametrize(("name", "last"), [("cosine", -10.0), ("linear", -10.117)])
def test_the_schedule_is_the_named_one(name: str, last: float) -> None:
    schedule = make_schedule(tiny_config(Path("run"), schedule=name))
    assert schedule.num_train_timesteps == 1000
    assert schedule.log_snr[-1] == pytest.approx(last, abs=0.01)


def test_the_network_sees_the_images_in_minus_one_to_one(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    trainer.loss.register_forward_pre_hook(
        lambda _module, arguments: seen.append((arguments[0], arguments[1]))
    )
    trainer.run_train_step()
    [(x_0, label)] = seen
    indices = batch_indices(trainer.config, 1, 500)
    data = small_digits().train
    expected = torch.from_numpy(data.images[indices].astype(np.float32) / 127.5 - 1)[:, None]
    torch.testing.assert_close(x_0, expected)
    assert x_0.min() == -1.0
    assert 0.9 < x_0.max() <= 1.0
    assert label.tolist() == data.labels[indices].tolist()


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_a_long_gradient_is_cut_to_the_asked_norm(tmp_path: Path, clip: float) -> None:
    trainer = tiny_trainer(tmp_path, gradient_clip=clip)
    trainer.run_train_step()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    assert norm == pytest.approx(1e-3, rel=1e-2) if clip < 1 else norm > 1e-2


# --- It learns -------------------------------------------------------------------------------


def test_the_loss_falls_on_real_digits_within_sixty_train_steps(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, epochs=1.92, batch_size=16, learning_rate=4e-3)
    assert trainer.total == 60
    losses = [trainer.run_train_step().item() for _ in range(trainer.total)]
    assert losses[0] == pytest.approx(1.0, abs=0.06)
    assert np.mean(losses[-10:]) < 0.4


# --- It resumes ------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "contiguous": {"memory_format": "contiguous"},
    "channels_last": {"memory_format": "channels_last"},
    "other options": {"schedule": "linear", "t_sampling": "uniform", "dropout": 0.1},
    "bf16": {"precision": "bf16", "batch_size": 2, "epochs": 0.04},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_resumed_run_is_equal_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    expected = load_checkpoint(run(tiny_config(whole, **changes)))
    assert expected.train_step == TRAIN_STEPS

    first = tiny_config(halves, **changes, stop_after=TRAIN_STEPS // 2)
    assert load_checkpoint(run(first)).train_step == TRAIN_STEPS // 2
    torch.manual_seed(12345)  # what else happens in the process plays no part
    second = dataclasses.replace(first, resume=True, stop_after=0)
    assert_equal_to_the_bit(load_checkpoint(run(second)), expected)

    def losses(folder: Path) -> list[tuple[float, float]]:
        return [(line["train_step"], line["loss"]) for line in read_log(folder)]

    assert losses(halves) == losses(whole)
    assert [step for step, _ in losses(halves)] == list(range(1, TRAIN_STEPS + 1))
    assert digests(halves).keys() >= {f"checkpoint-{TRAIN_STEPS:08d}.safetensors"}


def test_train_steps_after_the_last_checkpoint_are_done_again_and_logged_once(
    tmp_path: Path,
) -> None:
    run(tiny_config(tmp_path / "whole"))
    config = tiny_config(tmp_path / "killed", checkpoint_every=4, stop_after=7)
    newest = run(config)
    newest.unlink()  # as if the machine had died after train step 7: 4 is the last on disk
    resumed = dataclasses.replace(config, resume=True, stop_after=0)
    expected = load_checkpoint(tmp_path / "whole" / f"checkpoint-{TRAIN_STEPS:08d}.safetensors")
    assert_equal_to_the_bit(load_checkpoint(run(resumed)), expected)
    logged = [line["train_step"] for line in read_log(tmp_path / "killed")]
    assert logged == list(range(1, TRAIN_STEPS + 1))


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    path = run(config)
    before, log = digests(tmp_path), read_log(tmp_path)
    assert run(dataclasses.replace(config, resume=True)) == path
    assert digests(tmp_path) == before
    assert read_log(tmp_path) == log


def test_wall_time_and_images_seen_are_those_of_the_whole_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.wall_seconds = 100.0
    checkpoint = trainer.checkpoint()
    resumed = tiny_trainer(tmp_path)
    resumed.restore(checkpoint)
    resumed.run()
    last = load_checkpoint(tmp_path / f"checkpoint-{TRAIN_STEPS:08d}.safetensors")
    assert 100.0 < last.provenance["wall_seconds"] < 200.0
    assert last.provenance["images_seen"] == TRAIN_STEPS * 8
    assert last.provenance["train_steps_total"] == TRAIN_STEPS


def test_nothing_to_resume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        run(tiny_config(tmp_path, resume=True))


def test_another_configuration_is_refused_and_the_run_left_as_it_was(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, stop_after=1)
    run(config)
    before, log = digests(tmp_path), read_log(tmp_path)
    with pytest.raises(CheckpointError, match="learning_rate: the checkpoint has 0.0015"):
        run(dataclasses.replace(config, resume=True, learning_rate=1e-3))
    assert (digests(tmp_path), read_log(tmp_path)) == (before, log)


def test_other_data_are_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, stop_after=1)
    run(config)
    other = dataclasses.replace(small_digits(), checksums={"train-images-idx3-ubyte": "0"})
    with pytest.raises(CheckpointError, match="the training data are not those"):
        run(dataclasses.replace(config, resume=True), other)


def test_a_damaged_newest_checkpoint_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, stop_after=1)
    path = run(config)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        run(dataclasses.replace(config, resume=True))


def test_a_used_output_directory_is_refused_without_resume(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, stop_after=1)
    run(config)
    before = digests(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds a run already .* continue it with --resume"):
        run(config)
    assert digests(tmp_path) == before


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tiny_config(tmp_path, checkpoint_every=3))
    assert sorted(digests(tmp_path)) == [
        "checkpoint-00000009.safetensors",
        "checkpoint-00000010.safetensors",
    ]


# --- It stops cleanly ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_train_step_it_came_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    send_at(monkeypatch, 4, number)
    expected = f"stopped by {number.name}; saved .*checkpoint-00000004.safetensors"
    with pytest.raises(Interrupted, match=expected) as stopped:
        run(tiny_config(tmp_path))
    assert stopped.value.signal_number == number
    assert load_checkpoint(tmp_path / "checkpoint-00000004.safetensors").train_step == 4
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def send_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Send this process a signal in the middle of one train step."""
    original = Trainer.run_train_step

    def run_train_step(self: Trainer) -> torch.Tensor:
        if self.train_step + 1 == step:
            os.kill(os.getpid(), number)
        return original(self)

    monkeypatch.setattr(Trainer, "run_train_step", run_train_step)


def test_a_signal_in_the_last_train_step_lets_the_run_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_at(monkeypatch, TRAIN_STEPS, signal.SIGTERM)
    assert load_checkpoint(run(tiny_config(tmp_path))).train_step == TRAIN_STEPS
    assert (tmp_path / f"samples-{TRAIN_STEPS:08d}.png").is_file()


# --- It loses nothing good -------------------------------------------------------------------


def all_finite(path: Path) -> bool:
    checkpoint = load_checkpoint(path)
    states = (checkpoint.model_state, checkpoint.ema_state, checkpoint.optimizer_state)
    return all(bool(value.isfinite().all()) for state in states for value in state.values())


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(tmp_path, checkpoint_every=2)
    forward = trainer.loss.forward

    def poisoned(*arguments: Any) -> torch.Tensor:
        return forward(*arguments) * (math.nan if trainer.train_step + 1 == 6 else 1.0)

    monkeypatch.setattr(trainer.loss, "forward", poisoned)
    with pytest.raises(TrainingDiverged, match="^train step 6: the gradient norm is nan and the"):
        trainer.run()
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoint-00000004.safetensors"
    assert all_finite(newest)
    # The weights in memory are those of the train step before too.
    assert trainer.train_step == 5
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())

    config = dataclasses.replace(trainer.config, resume=True)
    assert_equal_to_the_bit(
        load_checkpoint(run(config)), load_checkpoint(run(tiny_config(tmp_path / "undisturbed")))
    )


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, learning_rate=1e30, checkpoint_every=1)
    with pytest.raises(TrainingDiverged, match=r"^train step \d: .*a lower --learning-rate"):
        run(config)
    assert all(all_finite(path) for path in tmp_path.glob("checkpoint-*"))


def test_a_weight_that_overflows_in_a_train_step_is_noticed_before_it_is_saved(
    tmp_path: Path,
) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.run_train_step()
    good = trainer.save()
    trainer.run_train_step()
    with torch.no_grad():
        trainer.model.unet.conv_in.weight[0, 0, 0, 0] = math.inf
    with pytest.raises(TrainingDiverged, match="train step 2: a weight is not finite"):
        trainer.save()
    assert newest_checkpoint(tmp_path) == good


# --- What it takes ---------------------------------------------------------------------------


def other_data(size: int, num_labels: int) -> Dataset:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, size, size), dtype=np.uint8)
    split = Split(images, (np.arange(40) % num_labels).astype(np.uint8))
    return Dataset(split, split, DATASETS["mnist"].label_names, {"images": "0"})


def test_own_images_of_another_size_and_number_of_labels_are_learned(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, image_size=16, num_labels=3, stop_after=1)
    checkpoint = load_checkpoint(run(config, other_data(16, 3)))
    assert checkpoint.provenance["label_names"] == ["0", "1", "2"]
    assert checkpoint.ema_state["embedding.label.weight"].shape == (4, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 32}, "image_size is (32, 32); legal: (14, 14), that of the images"),
        ({"num_labels": 9}, "num_labels is 9; legal: at least 10, the data's"),
        ({"image_channels": 3}, "image_channels is 3; legal: 1, as IDX is grey"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused_by_the_name_of_the_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(tiny_config(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


def test_the_provenance_says_what_was_trained_on_what(tmp_path: Path) -> None:
    data = small_digits()
    fashion = dataclasses.replace(data, label_names=DATASETS["fashion_mnist"].label_names)
    config = tiny_config(tmp_path, dataset="fashion_mnist", stop_after=1)
    provenance = load_checkpoint(run(config, fashion)).provenance
    assert provenance["dataset"] == "fashion_mnist"
    assert provenance["label_names"] == list(DATASETS["fashion_mnist"].label_names)
    assert provenance["dataset_md5"] == data.checksums
    assert provenance["placement"].startswith("CPU, fp32")
    assert provenance["processes"] == 1
    assert provenance["torch"] == torch.__version__
