"""The noise schedule that a configuration names."""

from pathlib import Path

import pytest

from tests.tiny_training import tiny_config
from training.schedule import make_schedule


@pytest.mark.parametrize(("name", "last"), [("cosine", -10.0), ("linear", -10.117)])
def test_the_schedule_is_the_named_one(name: str, last: float) -> None:
    schedule = make_schedule(tiny_config(Path("run"), schedule=name))
    assert schedule.num_train_timesteps == 1000
    assert schedule.log_snr[-1] == pytest.approx(last, abs=0.01)
