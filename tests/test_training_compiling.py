"""torch.compile: the same train steps, or the run goes on without it and says so."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny_training import tiny_trainer
from training.compiling import compiled_or_not
from training.device import Processes
from training.trainer import Trainer

CPU = torch.device("cpu")


def losses(trainer: Trainer) -> list[float]:
    return [trainer.run_train_step().item() for _ in range(3)]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_compiled_run_is_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    # Traced as always, but not handed to a C++ compiler, which takes minutes.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    expected = tiny_trainer(tmp_path, dropout=0.1, gradient_accumulation=parts)
    trainer = tiny_trainer(tmp_path, dropout=0.1, gradient_accumulation=parts, compile=True)
    assert isinstance(trainer.loss, torch._dynamo.OptimizedModule)
    assert losses(trainer) == pytest.approx(losses(expected), rel=1e-4)
    assert trainer.checkpoint().model_state.keys() == expected.checkpoint().model_state.keys()
    for name, value in expected.ema.state.items():
        torch.testing.assert_close(trainer.ema.state[name], value, rtol=1e-2, atol=1e-3)


def test_without_a_compiler_the_run_goes_on_and_says_why_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("Failed to find C++ compiler.\nSet CXX.")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=no_compiler))
    trainer = tiny_trainer(tmp_path, compile=True)
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning == (
        "torch.compile does not work here, and the run goes on without it: Failed to find C++ "
        "compiler."
    )
    assert losses(trainer) == losses(tiny_trainer(tmp_path))


class OneOfTwo(Processes):
    """The other one failed."""

    def any(self, flag: bool, device: torch.device) -> bool:
        return True


def test_all_processes_compile_or_none(caplog: pytest.LogCaptureFixture) -> None:
    module = nn.Linear(2, 2)
    assert compiled_or_not(module, lambda _: None, OneOfTwo(), CPU) is module
    assert not [r for r in caplog.records if r.levelname == "WARNING"]  # who failed says why
    assert compiled_or_not(module, lambda _: None, Processes(), CPU) is not module
