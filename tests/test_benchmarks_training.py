"""The training loops that are compared: same network, same images, same error measured."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import training_loops
from benchmarks.equal_loss import Point, Run, courses, equal_loss
from benchmarks.training import DIFFUSERS_BF16, eps_error_on_test_images, make_loops
from benchmarks.training_loops import OurLoop, OurProcesses, PlainLoop
from tests.fakes import FakeClock
from tests.tiny_training import SAMPLE, small_digits, tiny_config
from training.config import PRESETS
from training.datasets import load_dataset
from training.model import DiffusionModel
from training.schedule import make_schedule


def test_every_loop_trains_the_network_of_the_configuration(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    for loop in (OurLoop(config, small_digits()), PlainLoop(config, small_digits())):
        before = {name: value.clone() for name, value in loop.weights().items()}
        loop.run(2)
        after = loop.weights()
        DiffusionModel(config.model, make_schedule(config)).load_state_dict(after)
        assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_error_is_that_of_the_weights_and_nothing_else(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    loop = PlainLoop(config, small_digits())
    first, again = (
        eps_error_on_test_images(loop.weights(), config, small_digits()) for _ in range(2)
    )
    assert first == again
    assert math.isfinite(first)
    loop.run(1)
    assert eps_error_on_test_images(loop.weights(), config, small_digits()) != first


def test_a_loop_whose_packages_are_missing_is_left_out_and_said_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'accelerate'", name="accelerate")

    monkeypatch.setattr(training_loops.DiffusersLoop, "__init__", missing)
    monkeypatch.setattr("benchmarks.training.usable_cpus", lambda: 1)
    monkeypatch.setattr("benchmarks.training.has_bf16", lambda _: True)
    loops, left_out = make_loops(tiny_config(tmp_path), small_digits(), compiled=False)
    assert list(loops) == ["ours", "plain fp32 loop"]
    assert list(left_out.values()) == ["not installed: accelerate"] * 2


def test_a_cpu_without_bfloat16_is_not_made_to_emulate_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.training.usable_cpus", lambda: 1)
    monkeypatch.setattr("benchmarks.training.has_bf16", lambda _: False)
    _, left_out = make_loops(tiny_config(tmp_path), small_digits(), compiled=False)
    assert left_out[DIFFUSERS_BF16] == "this CPU has no instructions for bfloat16"


class CountingLoop:
    """Train steps of a second each, by the clock of a test; the weights count them."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._steps = 0

    def run(self, steps: int) -> None:
        self._steps += steps
        self._clock.now += steps

    def weights(self) -> dict[str, Tensor]:
        return {"steps": torch.tensor(self._steps)}

    def close(self) -> None:
        pass


def test_loops_take_turns_and_the_look_at_the_error_takes_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, looked = FakeClock(), []
    monkeypatch.setattr("benchmarks.equal_loss.time.perf_counter", clock)

    def slow_error(weights: dict[str, Tensor]) -> float:
        clock.now += 100.0
        looked.append(steps := int(weights["steps"]))
        return 1.0 / steps

    runs = {"a": Run(CountingLoop(clock), 5), "b": Run(CountingLoop(clock), 2)}
    found = courses(runs, slow_error, every=2)
    assert looked == [2, 2, 4, 5], "in turns"
    assert found == {
        "a": [Point(2, 2.0, 0.5), Point(4, 4.0, 0.25), Point(5, 5.0, 0.2)],
        "b": [Point(2, 2.0, 0.5)],
    }


def test_equal_loss_is_the_lowest_that_the_other_came_to() -> None:
    other = [Point(10, 1.0, 0.5), Point(20, 2.0, 0.2), Point(30, 3.0, 0.3)]
    short = [Point(10, 0.5, 0.21), Point(20, 0.8, 0.2), Point(30, 1.2, 0.1)]
    runs = {"long": [Point(10, 0.9, 0.1)], "short": short, "bad": [Point(10, 0.1, 0.3)]}
    compared = equal_loss(runs, other)
    assert (compared.of_other, compared.name, compared.of_run) == (other[1], "short", short[1])
    assert compared.times_as_fast == pytest.approx(2.0 / 0.8)
    never = equal_loss({"short": short[:1]}, other)
    assert never.name is None
    assert never.of_run is None
    assert never.times_as_fast is None


def test_several_processes_train_what_one_does() -> None:
    config = dataclasses.replace(
        PRESETS["tiny"], data_dir=SAMPLE, allow_other_data=True, device="cpu", batch_size=4
    )
    one = OurLoop(config, load_dataset("mnist", SAMPLE, verify=False))
    before = {name: value.clone() for name, value in one.weights().items()}
    one.run(1)
    several = OurProcesses("tiny", 4, SAMPLE, processes=2)
    try:
        several.run(1)
        weights = several.weights()
    finally:
        several.close()
    after = one.weights()
    assert distance(weights, after) < 0.01 * distance(before, after)


def distance(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    assert some.keys() == others.keys()
    return math.sqrt(sum(float((some[name] - others[name]).square().sum()) for name in some))
