"""What a run leaves for people: the log, the loss curve, TensorBoard's events."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.disk import DiskFull
from training.records import Records


def log_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def record(folder: Path, steps: range, *, tensorboard: bool = False, **validation: float) -> None:
    """One session of a run that logs a loss of 1 / train step, and measures every third."""
    start = steps.start - 1
    with Records(folder, 100, start, active=True, tensorboard=tensorboard) as records:
        for step in steps:
            records.advance()
            measured = validation if step % 3 == 0 else {}
            records.log(step, loss=1 / step, images_per_second=50.0, **measured)
        records.save_loss_curve(folder / "loss.png")


def test_every_line_of_the_log_is_json_and_there_while_the_run_goes_on(tmp_path: Path) -> None:
    with Records(tmp_path / "new", 100, 0, active=True, tensorboard=False) as records:
        for step in (1, 2):
            records.log(step, loss=0.5, images_per_second=10.0)
            expected = {"train_step": step, "loss": 0.5, "images_per_second": 10.0}
            assert log_lines(tmp_path / "new")[-1] == expected
    assert len(log_lines(tmp_path / "new")) == 2


def test_a_resumed_log_has_no_step_twice(tmp_path: Path) -> None:
    record(tmp_path, range(1, 8))
    record(tmp_path, range(5, 11))
    lines = log_lines(tmp_path)
    assert [line["train_step"] for line in lines] == list(range(1, 11))
    assert [line["loss"] for line in lines] == [1 / step for step in range(1, 11)]


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path: Path) -> None:
    record(tmp_path, range(1, 4))
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"train_step": 4, "lo')
    record(tmp_path, range(4, 6))
    assert [line["train_step"] for line in log_lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    record(tmp_path, range(1, 4))
    record(tmp_path, range(1, 3))
    assert [line["train_step"] for line in log_lines(tmp_path)] == [1, 2]


def test_the_loss_curve_is_a_picture_with_a_curve_in_it(tmp_path: Path) -> None:
    record(tmp_path, range(1, 30))
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 400
        assert picture.height > 200
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    coloured = np.ptp(pixels, axis=2) > 60  # axes and text are grey
    assert coloured.any(axis=0).sum() > 0.5 * coloured.shape[1]  # from left to right


def test_the_held_out_error_is_drawn_as_a_second_curve(tmp_path: Path) -> None:
    record(tmp_path / "one", range(1, 30))
    record(tmp_path / "two", range(1, 30), validation_eps_mse=0.5)
    colours = []
    for name in ("one", "two"):
        with Image.open(tmp_path / name / "loss.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        blue, orange = pixels @ [-1, 0, 1] > 60, pixels @ [1, 0, -1] > 60
        colours.append((bool(blue.any()), bool(orange.sum() > 200)))
    assert colours == [(True, False), (True, True)]


def test_without_a_logged_loss_there_is_no_curve(tmp_path: Path) -> None:
    record(tmp_path, range(1, 1))
    assert not (tmp_path / "loss.png").exists()


def test_tensorboard_reads_what_was_logged_and_no_step_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record(tmp_path, range(1, 8), tensorboard=True)
    record(tmp_path, range(5, 11), tensorboard=True)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [event.step for event in events] == list(range(1, 11))
    assert [event.value for event in events] == pytest.approx([1 / i for i in range(1, 11)])


def test_the_progress_bar_shows_loss_and_images_per_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, range(41, 44))
    shown = capsys.readouterr().err
    assert "43/100" in shown
    assert "loss 0.0233, 50 images/s" in shown
    assert "held out" not in shown


def test_the_progress_bar_keeps_showing_what_was_measured_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, range(1, 4), validation_eps_mse=0.4321)
    capsys.readouterr()
    record(tmp_path, range(4, 6), validation_eps_mse=0.1)  # resumed, before the next measurement
    assert "loss 0.2000, 50 images/s, held out 0.4321" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no such device")
def test_a_log_that_does_not_fit_is_named_in_one_line(tmp_path: Path) -> None:
    with Records(tmp_path, 100, 0, active=True, tensorboard=False) as records:
        (tmp_path / "log.jsonl").unlink()
        (tmp_path / "log.jsonl").symlink_to("/dev/full")
        with pytest.raises(DiskFull, match=f"^{tmp_path / 'log.jsonl'}: no room"):
            records.log(1, loss=0.5, images_per_second=10.0)


def test_other_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with Records(folder, 100, 0, active=False, tensorboard=True) as records:
        records.advance()
        records.log(1, loss=0.5, images_per_second=10.0)
        records.save_loss_curve(folder / "loss.png")
    assert not folder.exists()
    assert not capsys.readouterr().err
