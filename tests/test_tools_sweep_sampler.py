"""The sweep gives the sampler other numbers, and the evaluation sees them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from diffusion import samplers
from diffusion.samplers import dpmpp_2m, make_plan, network_rows
from diffusion.schedule import cosine_schedule


@pytest.fixture
def sweep(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "sweep_sampler", repository / "tools" / "sweep_sampler.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Put back afterwards.
    constants = [f"STOCHASTIC_{name.upper()}" for name in module.Shape._fields if name != "solver"]
    for constant in (*constants, "ddim_coefficients"):
        monkeypatch.setattr(samplers, constant, getattr(samplers, constant))
    return module


def test_the_numbers_change_the_plan_and_its_rows(sweep: ModuleType) -> None:
    schedule = cosine_schedule(1000)
    before = make_plan("ddim_stochastic", schedule, 10)
    sweep.use(sweep.Shape("ddim", eta=0.0, first=1.0, last=0.0, power=1.0, guided=(0.0, 1.0)))
    try:
        plan = make_plan("ddim_stochastic", schedule, 10)
        assert plan.timesteps.tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
        assert not plan.coefficients[:, 3].any()
        assert network_rows("ddim_stochastic", 10, 1.5) == 20
        assert before.coefficients[:, 3].any()
    finally:
        network_rows.cache_clear()


def test_a_solver_is_put_in_place_of_another(sweep: ModuleType) -> None:
    schedule = cosine_schedule(1000)
    try:
        sweep.use(sweep.Shape("dpmpp_2m", 0.5, first=1.0, last=0.0, power=1.0, guided=(0.0, 1.0)))
        plan, expected = make_plan("ddim_stochastic", schedule, 10), dpmpp_2m(schedule, 10)
        np.testing.assert_array_equal(plan.coefficients, expected.coefficients)
        np.testing.assert_array_equal(plan.timesteps, expected.timesteps)
    finally:
        network_rows.cache_clear()


def test_a_solver_that_is_not_known_is_refused_by_name(sweep: ModuleType) -> None:
    ended = CliRunner().invoke(sweep.main, ["--solver", "euler"])
    assert ended.exit_code == 1
    assert "Error: solver is 'euler'; legal: ddim, dpmpp_2m" in ended.output


@pytest.mark.parametrize("value", ["1", "0.2-0.4,x", ""])
def test_an_interval_that_is_none_is_refused_by_name(sweep: ModuleType, value: str) -> None:
    ended = CliRunner().invoke(sweep.main, ["--guided", value])
    assert ended.exit_code == 1
    assert f"Error: guided is {value!r}; legal: LOW-HIGH" in ended.output
