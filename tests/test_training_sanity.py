"""Early signs that training is wired up right: the first loss, and one batch learned by heart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_training import small_digits, tiny_config, tiny_trainer
from training.device import resolve_placement
from training.sanity import (
    OVERFIT_IMAGES,
    OverfitFailed,
    check_initial_loss,
    expected_initial_loss,
    overfit_one_batch,
)
from training.trainer import Trainer


def mean_square() -> float:
    return float(np.square(small_digits().train.images / 127.5 - 1).mean())


@pytest.mark.parametrize(
    ("prediction", "weighting"),
    [
        ("eps", "eps"), ("eps", "min_snr"), ("v", "eps"), ("v", "v"), ("v", "soft_v"),
        ("residual_eps", "eps"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_loss_of_an_untrained_network_is_the_expected_one(
    tmp_path: Path, prediction: str, weighting: str, schedule: str
) -> None:
    trainer = tiny_trainer(
        tmp_path, prediction=prediction, loss_weighting=weighting, schedule=schedule, batch_size=250
    )
    expected = expected_initial_loss(trainer.config, trainer.schedule, mean_square())
    assert trainer.run_train_step().item() == pytest.approx(expected, rel=0.05)
    if prediction == weighting == "eps":
        assert expected == 1


@pytest.mark.parametrize(
    ("loss", "fine"), [(0.49, False), (0.51, True), (1.99, True), (2.01, False)]
)
def test_half_and_twice_the_expected_loss_are_the_limits(
    caplog: pytest.LogCaptureFixture, loss: float, fine: bool
) -> None:
    check_initial_loss(0.1 * loss, 0.1)
    assert [record.levelname for record in caplog.records] == ([] if fine else ["WARNING"])


def test_a_loss_that_is_not_a_number_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    check_initial_loss(float("nan"), 1.0)
    assert "the loss before training is nan" in caplog.text


def overfit(output: Path, **changes: Any) -> None:
    config = tiny_config(output, **changes)
    overfit_one_batch(config, small_digits(), resolve_placement(config))


@pytest.mark.parametrize(
    "changes",
    [{}, {"prediction": "v", "loss_weighting": "v"}, {"optimizer": "adamw"}, {"batch_size": 500}],
)
def test_one_batch_is_learned_by_heart_and_nothing_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    caplog.set_level("INFO")
    overfit(tmp_path, overfit_one_batch=100, **changes)
    [message] = caplog.messages
    images = min(changes.get("batch_size", 8), OVERFIT_IMAGES)
    assert message.startswith(f"one batch of {images}: loss ")
    assert message.endswith(" before train step 100: below a tenth, as it should be")
    assert not list(tmp_path.iterdir())


def test_every_train_step_sees_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = Trainer.run_train_step

    def run_train_step(self: Trainer, batch: Any) -> Any:
        seen.append(tuple(float(part.sum()) for part in (batch[0].x_0, batch[0].random.eps)))
        return original(self, batch)

    monkeypatch.setattr(Trainer, "run_train_step", run_train_step)
    with pytest.raises(OverfitFailed):
        overfit(tmp_path, overfit_one_batch=3)
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_a_network_that_cannot_learn_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(OverfitFailed) as failed:
        overfit(tmp_path, overfit_one_batch=20, learning_rate=1e-9, muon_learning_rate=1e-9)
    message = str(failed.value)
    assert "it should fall below a tenth" in message
    assert "\n" not in message
