"""The training loop: it resumes to the bit, stops cleanly, keeps the best, loses nothing good."""

import dataclasses
import hashlib
import math
import os
import re
import signal
import time
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
from training.checkpoint import (
    CheckpointError,
    ema_model,
    load_checkpoint,
    newest_checkpoint,
)
from training.config import TrainConfig
from training.datasets import DATASETS, Dataset, Split
from training.device import Processes, resolve_placement
from training.loop import Loop, train
from training.objective import Draw, draw
from training.run_folder import BEST_NAME
from training.schedule import make_schedule
from training.stopping import Interrupted
from training.trainer import Trainer, TrainingDiverged
from training.validation import HeldOut, Judge


def run(config: TrainConfig, dataset: Dataset | None = None, judge: Judge | None = None) -> Path:
    torch.set_num_threads(1)
    placement = resolve_placement(config)
    return train(config, dataset or small_digits(), placement, Processes(), judge)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("*.safetensors")
    }


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
    Loop(resumed).run()
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


def test_processes_that_found_different_checkpoints_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, stop_after=1)
    run(config)
    monkeypatch.setattr(Processes, "agree", lambda *_: False)
    with pytest.raises(CheckpointError, match="all machines must see the same folder"):
        run(dataclasses.replace(config, resume=True))


def test_other_data_are_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, stop_after=1)
    run(config)
    other = dataclasses.replace(small_digits(), checksums={"train-images-idx3-ubyte": "0"})
    with pytest.raises(CheckpointError, match="the training data are not those"):
        run(dataclasses.replace(config, resume=True), other)


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_as_if_it_were_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load_checkpoint(run(tiny_config(tmp_path / "whole")))
    config = tiny_config(tmp_path / "it", checkpoint_every=3, stop_after=6, validate_every=3)
    newest = run(config)
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = dataclasses.replace(config, resume=True, stop_after=5)
    caplog.clear()
    run(resumed)
    newest_one, best_one = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert newest_one.startswith(f"{newest}: not a whole checkpoint")
    assert newest_one.endswith("passed over, checkpoint-00000003.safetensors is used")
    assert best_one.startswith(f"{tmp_path / 'it' / BEST_NAME}: not a whole checkpoint")
    assert best_one.endswith("the next best checkpoint replaces it")
    # What cannot be read is not deleted, nor counted among those that are kept.
    assert {path.name for path in (tmp_path / "it").glob("checkpoint-*")} == {
        f"checkpoint-0000000{step}.safetensors" for step in (3, 5, 6)
    }
    last = run(dataclasses.replace(resumed, stop_after=0))
    assert_equal_to_the_bit(load_checkpoint(last), expected)
    logged = [line["train_step"] for line in read_log(tmp_path / "it")]
    assert logged == list(range(1, TRAIN_STEPS + 1))


def test_when_no_checkpoint_is_whole_each_is_named(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, stop_after=2, checkpoint_every=1)
    run(config)
    names = sorted(digests(tmp_path))
    assert len(names) == 3
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of 3 checkpoints is whole") as refused:
        run(dataclasses.replace(config, resume=True))
    assert all(name in str(refused.value) for name in names)
    assert sorted(digests(tmp_path)) == names


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
        BEST_NAME,
        "checkpoint-00000009.safetensors",
        "checkpoint-00000010.safetensors",
    ]


# --- It starts from the weights of another ----------------------------------------------------


def test_a_run_goes_on_from_the_ema_weights_of_another_and_counts_its_cost_too(
    tmp_path: Path,
) -> None:
    first = load_checkpoint(run(tiny_config(tmp_path / "first")))
    further = tiny_config(tmp_path / "further", initialize_from=tmp_path / "first", seed=1)
    trainer = Trainer(further, small_digits(), resolve_placement(further), Processes())
    trainer.start_from(first)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, first.ema_state[name]), name
        assert torch.equal(trainer.ema.state[name], first.ema_state[name]), name

    last = load_checkpoint(run(further))
    assert last.train_step == TRAIN_STEPS
    assert last.provenance["initialized_from"] == first.provenance
    for name in ("images_seen", "training_flop"):
        assert last.provenance[name] == 2 * first.provenance[name]
    assert last.provenance["wall_seconds"] >= first.provenance["wall_seconds"]
    assert read_log(further.output)[-1]["epoch"] == pytest.approx(0.16)


def test_a_run_that_goes_on_from_another_is_resumed_to_the_bit(tmp_path: Path) -> None:
    source = run(tiny_config(tmp_path / "first"))  # the file itself will do as well as its folder
    whole = tiny_config(tmp_path / "whole", initialize_from=source, seed=1)
    expected = load_checkpoint(run(whole))
    half = dataclasses.replace(whole, output=tmp_path / "half", stop_after=TRAIN_STEPS // 2)
    run(half)
    resumed = load_checkpoint(run(dataclasses.replace(half, resume=True, stop_after=0)))
    assert_equal_to_the_bit(resumed, expected)
    assert resumed.provenance["images_seen"] == expected.provenance["images_seen"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"embedding_width": 32}, "model.embedding_width: the checkpoint has 16, asked for 32"),
        ({"schedule": "linear"}, "schedule: the checkpoint has 'cosine', asked for 'linear'"),
    ],
)
def test_weights_of_another_network_are_no_start(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    run(tiny_config(tmp_path / "first"))
    further = tiny_config(tmp_path / "further", initialize_from=tmp_path / "first", **changes)
    with pytest.raises(CheckpointError, match=re.escape(named)):
        run(further)


# --- It measures and keeps the best ----------------------------------------------------------


class ScriptedJudge:
    """Says of each set of images what the script says."""

    def __init__(self, *frechet: float) -> None:
        self.script = list(frechet)
        self.seen: list[tuple[tuple[int, ...], list[int]]] = []

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        self.seen.append((images.shape, np.bincount(labels).tolist()))
        return {"frechet": self.script.pop(0), "label_accuracy": 0.5}


def measured(folder: Path) -> dict[int, dict[str, float]]:
    """What validation found, by train step."""
    return {
        int(line["train_step"]): {k: v for k, v in line.items() if k.startswith("validation_")}
        for line in read_log(folder)
        if "validation_eps_mse" in line
    }


@pytest.mark.parametrize(("every", "steps"), [(4, [4, 8, 10]), (5, [5, 10]), (0, [10])])
def test_the_ema_weights_are_measured_when_due_and_at_the_end(
    tmp_path: Path, every: int, steps: list[int]
) -> None:
    judge = ScriptedJudge(9.0, 8.0, 7.0)
    config = tiny_config(tmp_path, validate_every=every, validate_num_images=20, log_every=7)
    run(config, judge=judge)
    found = measured(tmp_path)
    assert list(found) == steps
    for figures in found.values():
        assert 0 < figures["validation_eps_mse"] < 1.5
        assert figures["validation_label_accuracy"] == 0.5
        assert figures["validation_seconds"] > 0
    assert judge.seen == [((20, 1, 14, 14), [2] * 10)] * len(steps)
    assert [line["train_step"] for line in read_log(tmp_path)] == sorted({7, *steps})


def test_measuring_changes_no_train_step(tmp_path: Path) -> None:
    often = tiny_config(tmp_path / "often", validate_every=1, validate_num_images=10)
    never = tiny_config(tmp_path / "never", validate_every=0)
    judge = ScriptedJudge(*range(20))
    first, second = (load_checkpoint(run(config, judge=judge)) for config in (often, never))
    assert_equal_to_the_bit(first, second)
    last = list(measured(tmp_path / "often").values())[-1]
    [at_the_end] = measured(tmp_path / "never").values()
    assert at_the_end["validation_eps_mse"] == last["validation_eps_mse"]  # the same, every time


def test_it_is_the_ema_weights_that_are_measured(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run(tiny_config(tmp_path)))
    schedule = make_schedule(checkpoint.config)
    held_out = HeldOut(small_digits().test, schedule, torch.device("cpu"))
    figures = measured(tmp_path)[TRAIN_STEPS]
    of_ema = held_out.errors(ema_model(checkpoint)).mean()
    assert figures["validation_eps_mse"] == pytest.approx(of_ema, rel=1e-6)
    assert checkpoint.provenance["validation"] == {"train_step": TRAIN_STEPS, **figures}
    as_trained = ema_model(dataclasses.replace(checkpoint, ema_state=checkpoint.model_state))
    assert held_out.errors(as_trained).mean() != pytest.approx(of_ema, rel=1e-5)


def test_the_time_it_takes_to_measure_is_not_counted_as_training(tmp_path: Path) -> None:
    class SlowJudge(ScriptedJudge):
        def __call__(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
            time.sleep(1)
            return super().__call__(images, labels)

    config = tiny_config(
        tmp_path, validate_every=4, validate_num_images=10, log_every=6, stop_after=6
    )
    run(config, judge=SlowJudge(2.0, 1.0))
    last = read_log(tmp_path)[-1]
    assert last["images_per_second"] > 16  # two train steps of 8, in less than that second
    assert last["validation_seconds"] > 1


def best(folder: Path) -> int:
    return load_checkpoint(folder / BEST_NAME).train_step


def test_the_checkpoint_with_the_lowest_error_is_kept_as_the_best(tmp_path: Path) -> None:
    # The rate never falls: the last weights need not be the best.
    run(tiny_config(tmp_path, validate_every=2, checkpoint_every=3, learning_rate=3e-2))
    errors = {step: figures["validation_eps_mse"] for step, figures in measured(tmp_path).items()}
    assert best(tmp_path) == min(errors, key=errors.__getitem__)
    checkpoint = load_checkpoint(tmp_path / BEST_NAME)
    assert checkpoint.provenance["validation"]["train_step"] == checkpoint.train_step
    assert checkpoint.provenance["validation"]["validation_eps_mse"] == min(errors.values())


def test_the_best_can_be_the_one_with_the_lowest_frechet_distance(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, validate_every=2, validate_num_images=10, select_by="frechet", stop_after=8,
        checkpoint_every=3,
    )  # fmt: skip
    run(config, judge=ScriptedJudge(9.0, 4.0, 6.0, 5.0))
    assert best(tmp_path) == 4
    assert not (tmp_path / "checkpoint-00000004.safetensors").exists()  # only the best has it


def test_the_best_stays_the_best_when_a_run_is_resumed(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, validate_every=2, validate_num_images=10, select_by="frechet", stop_after=4
    )
    run(config, judge=ScriptedJudge(3.0, 5.0))
    resumed = dataclasses.replace(config, resume=True, stop_after=8)
    run(resumed, judge=ScriptedJudge(4.0, 3.5))
    assert best(tmp_path) == 2
    run(dataclasses.replace(resumed, stop_after=0), judge=ScriptedJudge(2.0))
    assert best(tmp_path) == 10


def test_the_bar_of_another_figure_is_that_of_the_best_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, validate_every=2, validate_num_images=10, stop_after=4)
    run(config, judge=ScriptedJudge(3.0, 5.0))
    assert best(tmp_path) == 4  # by its error
    resumed = dataclasses.replace(config, resume=True, select_by="frechet", stop_after=8)
    run(resumed, judge=ScriptedJudge(4.0, 4.5))
    assert best(tmp_path) == 6  # 4.0 is below the 5.0 of train step 4


def test_what_is_measured_must_be_finite(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, validate_every=5)
    for _ in range(4):
        trainer.run_train_step()
    trainer.ema.state["unet.conv_out.weight"].fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="train step 5: what is measured on test images"):
        Loop(trainer).run()
    assert not digests(tmp_path)


# --- It says what it costs, and whether it starts right --------------------------------------


def test_the_log_says_how_far_the_run_is_and_what_it_has_cost(tmp_path: Path) -> None:
    last = load_checkpoint(run(tiny_config(tmp_path, log_every=2)))
    lines = read_log(tmp_path)
    assert [line["progress"] for line in lines] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(line["eta_seconds"] > 0 for line in lines[:-1])
    assert lines[-1]["eta_seconds"] == 0
    per_step = last.provenance["training_flop"] / TRAIN_STEPS
    assert [line["training_flop"] for line in lines] == [
        per_step * step for step in range(2, 11, 2)
    ]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_loss_that_starts_out_wrong_is_pointed_out(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    scale: float,
) -> None:
    def wrong(*arguments: Any) -> Draw:
        right = draw(*arguments)
        return dataclasses.replace(right, eps=scale * right.eps)

    monkeypatch.setattr("training.trainer.draw", wrong)
    run(tiny_config(tmp_path, stop_after=2))
    first, second = read_log(tmp_path)
    assert first["initial_loss"] == first["loss"] == pytest.approx(scale**2, rel=0.1)
    assert first["expected_initial_loss"] == 1
    assert "initial_loss" not in second
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == (scale > 1)
    assert all(re.match("the loss before training is .* about 1:", text) for text in warnings)


def test_a_resumed_run_is_not_measured_by_what_an_untrained_network_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tmp_path, stop_after=5)
    run(config)
    run(dataclasses.replace(config, resume=True, stop_after=7))
    assert [line["train_step"] for line in read_log(tmp_path) if "initial_loss" in line] == [1]


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
        Loop(trainer).run()
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
    loop = Loop(trainer)
    trainer.run_train_step()
    good = loop.save()
    trainer.run_train_step()
    with torch.no_grad():
        trainer.model.unet.conv_in.weight[0, 0, 0, 0] = math.inf
    with pytest.raises(TrainingDiverged, match="train step 2: a weight is not finite"):
        loop.save()
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
        (
            {"image_size": 32},
            "image_size is (32, 32); legal: (14, 14), that of train-images-idx3-ubyte",
        ),
        (
            {"num_labels": 9},
            "num_labels is 9; legal: at least 10, as train-labels-idx1-ubyte has label 9 in row 4",
        ),
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
