"""Who was passed over for too long, and what it is owed."""

import numpy as np
import pytest

from serving.ageing import Ageing

ORDER = np.array([0, 1, 2, 3])
WORK_LEFT = np.array([100, 20, 5, 5])
HERE = np.array([0, 1, 2, 3])
EVERYBODY = np.ones(4, dtype=np.bool_)


def serve(ageing: Ageing, slot: int, rows: int) -> None:
    ageing.served(np.array([slot]), np.array([rows]), ORDER, HERE)


def choose(ageing: Ageing, wants: np.ndarray = EVERYBODY, lanes: int = 8) -> int | None:
    ageing.choose(HERE, wants, ORDER, WORK_LEFT, lanes)
    return ageing.elder


def test_the_elder_was_passed_by_more_than_its_work_by_those_that_came_after_it() -> None:
    ageing = Ageing(4, 0.25)
    serve(ageing, 3, 79)
    assert choose(ageing) == 2, "that needs 20 rows to have gone by"
    serve(ageing, 0, 1000)
    assert choose(ageing) == 2, "slot 0 came before all of them, and passed nobody by"
    serve(ageing, 3, 1)
    assert choose(ageing) == 1, "of two, the one that came first"


def test_whoever_has_all_the_lanes_that_it_wants_is_no_elder() -> None:
    ageing = Ageing(4, 0.25)
    serve(ageing, 3, 80)
    assert choose(ageing, np.array([True, False, True, True])) == 2


def test_the_elder_is_owed_its_share_of_what_it_and_later_ones_are_served() -> None:
    ageing = Ageing(4, 0.25)
    serve(ageing, 3, 80)
    assert choose(ageing) == 1
    assert not ageing.is_owed_a_step(8)
    serve(ageing, 3, 7)
    assert not ageing.is_owed_a_step(8), "7 of 8"
    serve(ageing, 0, 100)
    assert not ageing.is_owed_a_step(8), "an earlier one owes it nothing"
    serve(ageing, 2, 1)
    assert ageing.is_owed_a_step(8)
    serve(ageing, 2, 1000)
    serve(ageing, 1, 2)  # 0.75 of 2 rows: three quarters of a step of 8 lanes, less than a step
    assert not ageing.is_owed_a_step(8), "nobody is owed more than a step"


def test_another_elder_begins_anew_and_so_does_a_slot() -> None:
    ageing = Ageing(4, 0.25)
    serve(ageing, 3, 80)
    choose(ageing)
    serve(ageing, 3, 8)
    assert ageing.is_owed_a_step(8)
    ageing.enter(1)
    assert choose(ageing) == 2
    assert not ageing.is_owed_a_step(8)


def test_without_ageing_nobody_is_the_elder() -> None:
    ageing = Ageing(4, 0.0)
    serve(ageing, 3, 10**9)
    assert choose(ageing) is None
    assert not ageing.is_owed_a_step(1)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"ageing must be in 0\.\.1, got {share}"):
        Ageing(4, share)
