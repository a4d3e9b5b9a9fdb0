"""The power-function average: its exponent, its closed form, its width."""

import numpy as np
import pytest
import torch
from torch import nn

from training.ema import PowerEma, gamma_of_relative_width


# Karras et al. 2024, section 3.1 and appendix C.
@pytest.mark.parametrize(("relative_width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_is_that_of_the_paper(relative_width: float, gamma: float) -> None:
    assert gamma_of_relative_width(relative_width) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("relative_width", [0.01, 0.05, 0.08, 0.15, 0.25, 0.279])
def test_gamma_solves_for_the_relative_width(relative_width: float) -> None:
    gamma = gamma_of_relative_width(relative_width)
    assert gamma > 0
    width = ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5
    assert width == pytest.approx(relative_width, rel=1e-9)


def averaging_weights(gamma: float, n: int) -> np.ndarray:
    """The share of each of n values in the average: (i^(gamma+1) - (i-1)^(gamma+1)) / n^(gamma+1).

    The product of (1 - 1/j)^(gamma+1) over j = i+1 .. n telescopes to (i/n)^(gamma+1).
    """
    edges = (np.arange(n + 1) / n) ** (gamma + 1)
    return np.diff(edges)


def test_the_average_of_a_known_sequence_is_the_closed_form() -> None:
    model = nn.Linear(1, 1).double()
    ema = PowerEma(model, 0.10)
    values = np.random.default_rng(0).normal(size=200)
    with torch.no_grad():
        for step, value in enumerate(values, start=1):
            model.weight.fill_(value)
            model.bias.fill_(-value)
            ema.update(model, step)
    expected = float(averaging_weights(ema.gamma, 200) @ values)
    assert ema.state["weight"].item() == pytest.approx(expected, rel=1e-9)
    assert ema.state["bias"].item() == pytest.approx(-expected, rel=1e-9)


def test_the_initial_weights_are_forgotten_at_the_first_train_step() -> None:
    model = nn.Linear(2, 2)
    ema = PowerEma(model, 0.08)
    with torch.no_grad():
        model.weight.fill_(3.0)
        ema.update(model, 1)
    assert torch.equal(ema.state["weight"], model.weight)


@pytest.mark.parametrize("relative_width", [0.05, 0.08, 0.15])
def test_the_width_of_the_average_is_the_asked_share_of_the_run(relative_width: float) -> None:
    n = 10_000
    weights = averaging_weights(gamma_of_relative_width(relative_width), n)
    position = (np.arange(n) + 0.5) / n
    mean = weights @ position
    spread = (weights @ (position - mean) ** 2) ** 0.5
    assert spread == pytest.approx(relative_width, rel=1e-3)


def test_the_average_is_not_the_models_memory() -> None:
    model = nn.Linear(2, 2)
    ema = PowerEma(model, 0.08)
    before = ema.state["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(ema.state["weight"], before)
    assert not ema.state["weight"].requires_grad
