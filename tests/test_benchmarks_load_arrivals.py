"""Arrivals of the load generator: known before the first request is sent."""

import numpy as np
import pytest

from benchmarks.load.arrivals import (
    Kind,
    bursts,
    kinds_in_order,
    mean_rows,
    parse_mixture,
    poisson,
)

MIXTURE = parse_mixture("0.9:1x10,0.1:64x250")


def test_poisson_arrivals_are_those_of_their_seed() -> None:
    assert np.array_equal(poisson(5.0, 50, seed=3), poisson(5.0, 50, seed=3))
    assert not np.array_equal(poisson(5.0, 50, seed=3), poisson(5.0, 50, seed=4))


def test_another_rate_is_the_same_arrivals_at_another_pace() -> None:
    assert poisson(10.0, 50, seed=3) == pytest.approx(poisson(5.0, 50, seed=3) / 2)


def test_poisson_intervals_have_the_mean_and_the_spread_of_an_exponential() -> None:
    intervals = np.diff(poisson(20.0, 20_001, seed=0))
    assert intervals.min() >= 0.0
    assert intervals.mean() == pytest.approx(1 / 20, rel=0.03)
    assert intervals.std() == pytest.approx(1 / 20, rel=0.05)


def test_bursts_come_at_once_and_keep_the_rate() -> None:
    at_seconds = bursts(8.0, 12, size=4)
    assert at_seconds.tolist() == [0.0] * 4 + [0.5] * 4 + [1.0] * 4


def test_every_ten_requests_hold_the_exact_shares() -> None:
    kinds = kinds_in_order(MIXTURE, 200, seed=1)
    large = [kind.count == 64 for kind in kinds]
    assert [sum(large[i : i + 10]) for i in range(0, 200, 10)] == [1] * 20
    places = {large[i : i + 10].index(True) for i in range(0, 200, 10)}
    assert len(places) > 3, "where in its ten the large one comes is random"


def test_the_order_of_kinds_is_that_of_its_seed() -> None:
    assert kinds_in_order(MIXTURE, 40, seed=1) == kinds_in_order(MIXTURE, 40, seed=1)
    assert kinds_in_order(MIXTURE, 40, seed=1) != kinds_in_order(MIXTURE, 40, seed=2)


def test_a_mixture_says_what_it_costs() -> None:
    assert MIXTURE == (Kind(0.9, 1, 10), Kind(0.1, 64, 250))
    assert mean_rows(MIXTURE) == pytest.approx(0.9 * 10 + 0.1 * 16_000)
    assert str(MIXTURE[1]) == "64 x 250"


@pytest.mark.parametrize(
    "text", ["", "1:1", "0.9:1x10", "0.95:1x10,0.05:2x10", "1:0x10", "1:1x0", "x:1x1", "1.5:1x1"]
)
def test_a_mixture_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mixture"):
        parse_mixture(text)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_must_be_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        poisson(rate, 1, seed=0)
    with pytest.raises(ValueError, match="rate"):
        bursts(rate, 1, size=1)
