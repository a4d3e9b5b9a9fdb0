"""``python -m training.train``: flags, exit codes, one clear line for every error, clean stops."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.judge import Judges
from tests.tiny_training import (
    SAMPLE,
    TRAIN_STEPS,
    assert_equal_to_the_bit,
    read_log,
    tiny_flags,
)
from training.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from training.config import PRESETS, ModelConfig, TrainConfig, to_dict
from training.datasets import DATASETS, FILES, Dataset, load_dataset
from training.objective import DiffusionLoss
from training.train import find_judge, main

LAST = f"{TRAIN_STEPS:08d}"


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


# --- Flags -----------------------------------------------------------------------------------


def dry_run(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["--dry-run", *flags]) == 0
    resolved: dict[str, Any] = json.loads(capsys.readouterr().out)
    return resolved


@pytest.mark.parametrize("preset", PRESETS)
def test_a_dry_run_prints_the_preset(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = to_dict(dataclasses.replace(PRESETS[preset], dry_run=True))
    assert dry_run(capsys, "--preset", preset) == expected
    assert dry_run(capsys, f"--preset={preset}") == expected


def test_a_dry_run_prints_the_overrides_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    resolved = dry_run(capsys, *tiny_flags(output, learning_rate=3e-4, tensorboard=True))
    assert resolved["output"] == str(output)
    assert resolved["data_dir"] == str(SAMPLE)
    assert resolved["learning_rate"] == 3e-4
    assert resolved["tensorboard"] is True
    assert resolved["model"]["widths"] == [16, 32]
    assert resolved["model"]["dropout"] == PRESETS["tiny"].model.dropout
    assert not output.exists()


def test_help_explains_every_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = re.sub(r"[│╭╮╰╯─]|\x1b\[[0-9;]*m", " ", capsys.readouterr().out)
    for name in [f.name for c in (TrainConfig, ModelConfig) for f in dataclasses.fields(c)]:
        if name == "model":
            continue
        flag = "--" + name.replace("_", "-")
        described = re.search(rf"^ *{flag}[ ,].*?(?=^ *--|\Z)", text, re.MULTILINE | re.DOTALL)
        assert described, flag
        words = described.group().partition("(default:")[0].split()
        prose = [word for word in words if re.fullmatch(r"[a-z]+[.,;:]?", word)]
        assert len(prose) >= 2, f"{flag} has no help: {described.group()}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "batch_size is 0; legal: at least 1"),
        (["--widths", "16", "40"], "widths is (16, 40); legal: at least two multiples of 16"),
        (["--label-dropout", "1.5"], "label_dropout is 1.5; legal: 0 .. 1"),
        (["--preset", "huge"], "huge"),
        (["--preset"], "--preset"),
        (["--colour", "red"], "--colour"),
        (["--schedule", "sigmoid"], "sigmoid"),
        (["--precision", "fp16"], "fp16"),
        (["--gradient-accumulation", "3"], "gradient_accumulation is 3; legal: divisors of batch"),
    ],
)
def test_a_wrong_flag_is_refused_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--dry-run", *flags])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", captured.err).split())
    assert not captured.out


# --- A whole run -----------------------------------------------------------------------------


def test_a_run_leaves_checkpoint_samples_curve_log_and_events(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert main(tiny_flags(tmp_path, tensorboard=True, log_every=3, sample_every=4)) == 0
    for name in ("samples-00000004.png", "samples-00000008.png", f"samples-{LAST}.png"):
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.mode) == ("PNG", "L")
            assert picture.size == (8 * 28 * 2, 10 * 28 * 2)  # a row of eight for each digit
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"
    log = read_log(tmp_path)
    assert [line["train_step"] for line in log] == [3, 6, 9, 10]
    for line in log:
        assert line.keys() >= {
            "train_step", "loss", "learning_rate", "epoch", "images_per_second", "progress",
            "eta_seconds", "training_flop",
        }  # fmt: skip
        assert 0 < line["loss"] < 2
        assert line["epoch"] == pytest.approx(line["train_step"] * 8 / 500)
        assert line["images_per_second"] > 0
    assert log[-1]["learning_rate"] == 0
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    checkpoint = load_checkpoint(tmp_path / f"checkpoint-{LAST}.safetensors")
    assert checkpoint.train_step == TRAIN_STEPS
    assert caplog.messages[-1] == f"done: {tmp_path / f'checkpoint-{LAST}.safetensors'}"


def test_fashion_mnist_takes_the_same_path_with_its_own_label_names(tmp_path: Path) -> None:
    assert main(tiny_flags(tmp_path, dataset="fashion_mnist", stop_after=1, sample_every=0)) == 0
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    checkpoint = load_checkpoint(newest)
    assert checkpoint.config.dataset == checkpoint.provenance["dataset"] == "fashion_mnist"
    assert checkpoint.provenance["label_names"] == list(DATASETS["fashion_mnist"].label_names)


# --- Errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_directory_of_other_files_is_refused_by_md5(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dataset: str
) -> None:
    flags = tiny_flags(tmp_path, dataset=dataset, allow_other_data=False)
    assert main(flags) == 1
    [error] = errors(caplog)
    canonical = DATASETS[dataset].md5[FILES[0]]
    assert error.startswith("error: ")
    assert error.endswith(f", the canonical file {canonical}")
    assert not list(tmp_path.iterdir())


def test_a_used_output_is_refused_without_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = tiny_flags(tmp_path, stop_after=1)
    assert main(flags) == 0
    assert main(flags) == 1
    [error] = errors(caplog)
    assert "holds a run already" in error
    assert "--resume" in error


def test_a_checkpoint_of_another_configuration_is_refused_by_the_name_of_the_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(tiny_flags(tmp_path, stop_after=1)) == 0
    assert main(tiny_flags(tmp_path, resume=True, groups=4)) == 1
    [error] = errors(caplog)
    assert "model.groups: the checkpoint has 8, asked for 4" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e30}, "a lower --learning-rate"),
        (
            {"image_size": 32},
            "error: image_size is (32, 32); legal: (28, 28), that of train-images",
        ),
        (
            {"schedule": "linear", "num_train_timesteps": 90_000},
            "error: num_train_timesteps is 90000; legal: fewer, with the linear schedule: ",
        ),
    ],
)
def test_what_cannot_be_trained_ends_in_one_line_and_exit_code_1(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    message: str,
) -> None:
    assert main(tiny_flags(tmp_path, **changes)) == 1
    [error] = errors(caplog)
    assert message in error
    assert "\n" not in error


def test_an_output_that_cannot_be_written_ends_in_one_line_and_exit_code_1(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert main(tiny_flags(tmp_path / "file" / "run")) == 1
    [error] = errors(caplog)
    assert error.startswith("error: [Errno 20] Not a directory: ")


def test_cuda_without_a_device_ends_in_one_line_and_exit_code_1(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(tiny_flags(tmp_path, device="cuda")) == 1
    assert errors(caplog) == ["error: device is cuda; PyTorch sees no CUDA device here"]


def test_a_loss_that_is_not_a_number_ends_in_one_error_and_the_last_checkpoint_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    forward = DiffusionLoss.forward

    def poisoned(self: DiffusionLoss, *arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return forward(self, *arguments) * (math.nan if calls == 4 else 1.0)

    monkeypatch.setattr(DiffusionLoss, "forward", poisoned)
    assert main(tiny_flags(tmp_path, checkpoint_every=2)) == 1
    [error] = errors(caplog)
    assert error.startswith("error: train step 4: the gradient norm is nan and the loss nan")
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    checkpoint = load_checkpoint(newest)
    assert checkpoint.train_step == 2
    assert all(bool(value.isfinite().all()) for value in checkpoint.model_state.values())
    assert [line["train_step"] for line in read_log(tmp_path)] == [1, 2, 3]


def test_ctrl_c_before_the_first_train_step_is_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.train.load_dataset", interrupted)
    assert main(tiny_flags(tmp_path)) == 130
    assert not errors(caplog)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no such device")
def test_a_full_disk_ends_in_one_line_and_the_checkpoints_before_it_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = tiny_flags(tmp_path, checkpoint_every=2)
    path = tmp_path / "checkpoint-00000006.safetensors"
    partial = path.with_name(path.name + ".partial")
    partial.symlink_to("/dev/full")  # every write to it fails as on a full disk
    assert main(flags) == 1
    [error] = errors(caplog)
    assert re.fullmatch(
        rf"error: {path}: no room for its [\d,]+ bytes \(No space left on device; [\d,]+ bytes are "
        r"free\)\. Make room and start again, with --resume if there is a checkpoint; it is whole",
        error,
    )
    assert not partial.is_symlink()
    assert not path.exists()
    assert load_checkpoint(tmp_path / "checkpoint-00000004.safetensors").train_step == 4
    assert main([*flags, "--resume"]) == 0  # there is room again
    assert load_checkpoint(path.with_name(f"checkpoint-{LAST}.safetensors")).train_step == 10


def test_too_little_memory_ends_in_one_line_that_says_what_helps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore text")

    monkeypatch.setattr(DiffusionLoss, "forward", too_large)
    assert main(tiny_flags(tmp_path)) == 1
    [error] = errors(caplog)
    assert error == (
        "error: CUDA out of memory. Tried to allocate 9 GiB. A larger --gradient-accumulation "
        "needs less memory"
    )


# --- Checks ----------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_the_data_are_looked_over_before_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_blank(*_: object, **__: object) -> Dataset:
        dataset = load_dataset("mnist", SAMPLE, verify=False)
        images = dataset.train.images.copy()
        images[7] = 0
        return dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=images))

    monkeypatch.setattr("training.train.load_dataset", with_a_blank)
    caplog.set_level("INFO")
    assert main(tiny_flags(tmp_path, stop_after=1, sample_every=0)) == 0
    assert caplog.messages[0].startswith("mnist: 500 training and 200 test images, 28 x 28; ")
    assert warnings(caplog) == [
        "train-images-idx3-ubyte: 1 of 500 images are blank, all pixels of one value, as in row 7"
    ]


@pytest.mark.parametrize(("learning_rate", "exit_code"), [(1.5e-3, 0), (1e-9, 1)])
def test_overfitting_one_batch_says_whether_training_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, learning_rate: float, exit_code: int
) -> None:
    caplog.set_level("INFO")
    flags = tiny_flags(
        tmp_path,
        overfit_one_batch=60,
        optimizer="adamw",
        learning_rate=learning_rate,
        batch_size=16,
    )
    assert main(flags) == exit_code
    assert caplog.messages[-1].removeprefix("error: ").startswith("one batch of 16: loss ")
    assert len(errors(caplog)) == exit_code
    assert not list(tmp_path.iterdir())


@pytest.fixture
def ordinary_algorithms() -> Iterator[None]:
    """Puts PyTorch's setting back."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("ordinary_algorithms")
def test_two_deterministic_runs_are_equal_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # and what main sets is taken back
    ends = []
    for name in ("first", "second"):
        flags = tiny_flags(tmp_path / name, deterministic=True, dropout=0.1)
        assert main(flags) == 0
        ends.append(load_checkpoint(tmp_path / name / f"checkpoint-{LAST}.safetensors"))
        torch.manual_seed(12345)
    assert torch.are_deterministic_algorithms_enabled()
    assert_equal_to_the_bit(*ends)


# --- Judges ----------------------------------------------------------------------------------


class FakeJudge:
    """Sees the brightness of the quadrants, and reads every image as a 3."""

    num_features = 4

    def features(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(-1, 2, 14, 2, 14).mean(axis=(2, 4)).reshape(-1, 4)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.full(len(images), 3)


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judges of evaluation, for the data set mnist alone."""

    def load_judges(dataset: str, num_threads: int | None = None) -> Judges:
        if dataset != "mnist":
            raise FileNotFoundError("no judges of such clothes")
        return Judges(FakeJudge(), (FakeJudge(), FakeJudge(), FakeJudge()))

    monkeypatch.setattr("evaluation.judge.load_judges", load_judges)


@pytest.mark.usefixtures("judges")
def test_generated_images_are_judged_by_the_judges_of_the_data_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(tiny_flags(tmp_path, validate_num_images=20, validate_every=8)) == 0
    judged = [line for line in read_log(tmp_path) if "validation_frechet" in line]
    assert [line["train_step"] for line in judged] == [8, 10]
    for line in judged:
        assert line["validation_frechet"] > 0
        assert line["validation_frechet_ratio"] > 1
        assert line["validation_label_accuracy"] == pytest.approx(0.1)
    assert not warnings(caplog)


def test_the_judges_that_evaluation_ships_know_real_digits() -> None:
    digits = load_dataset("mnist", SAMPLE, verify=False)
    judge = find_judge(TrainConfig(num_threads=1), digits)
    assert judge is not None
    images, labels = digits.test.images[:, None], digits.test.labels.astype(np.int64)
    found = judge(images, labels)
    assert found["label_accuracy"] > 0.98
    assert found["frechet_ratio"] == 1
    assert judge(255 - images, labels)["frechet_ratio"] > 10


@pytest.mark.usefixtures("judges")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dataset": "fashion_mnist"}, "no judges of such clothes"),
        ({"num_labels": 12}, "judges take 28 x 28 pixels and 10 labels, not (28, 28) and 12"),
    ],
)
def test_where_there_is_no_judge_one_line_says_so_and_the_rest_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    flags = tiny_flags(tmp_path, validate_num_images=20, stop_after=1, **changes)
    assert main(flags) == 0
    told = [text for text in warnings(caplog) if "no image of labels 10" not in text]
    assert told == [f"validation without Frechet distance and label accuracy: {reason}"]
    [line] = read_log(tmp_path)
    assert "validation_eps_mse" in line
    assert "validation_frechet" not in line


def test_without_onnx_runtime_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "evaluation.judge", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # import raises ImportError
    assert main(tiny_flags(tmp_path, validate_num_images=20, stop_after=1)) == 0
    [warning] = warnings(caplog)
    assert warning.startswith("validation without Frechet distance and label accuracy: import of")


def test_the_best_cannot_be_selected_by_what_nobody_measures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "evaluation.judge", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(tiny_flags(tmp_path, validate_num_images=20, select_by="frechet")) == 1
    [error] = errors(caplog)
    assert error.startswith("error: select_by is frechet; legal: eps_mse, as there is no judge: ")
    assert not list(tmp_path.iterdir())


# --- Stops -----------------------------------------------------------------------------------


def wait_for_lines(log: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 100
    while not log.is_file() or len(log.read_text().splitlines()) < count:
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The end of a run of 30 train steps that nothing stopped."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert main(tiny_flags(output, epochs=0.48)) == 0
    return load_checkpoint(output / "checkpoint-00000030.safetensors")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_process_saves_and_its_run_resumes_to_the_bit(
    repository: Path,
    tmp_path: Path,
    undisturbed: Checkpoint,
    number: signal.Signals,
    exit_code: int,
) -> None:
    output, errors_at = tmp_path / "run", tmp_path / "stderr"
    flags = tiny_flags(output, epochs=0.48)
    with errors_at.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "training.train", *flags],
            cwd=repository,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        wait_for_lines(output / "log.jsonl", 3, process)
        process.send_signal(number)
        assert process.wait(60) == exit_code
    finally:
        process.kill()
    message = errors_at.read_text()
    assert f"stopped by {number.name}; saved {output}" in message
    assert "continue with --resume" in message
    assert "Traceback" not in message
    newest = newest_checkpoint(output)
    assert newest is not None
    assert 3 <= load_checkpoint(newest).train_step < 30

    assert main([*flags, "--resume"]) == 0
    assert_equal_to_the_bit(
        load_checkpoint(output / "checkpoint-00000030.safetensors"), undisturbed
    )
    assert [line["train_step"] for line in read_log(output)] == list(range(1, 31))
