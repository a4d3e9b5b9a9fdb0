"""Engines have equal parts of the time of their thread."""

from dataclasses import dataclass
from typing import cast

from serving.engine import Engine
from serving.turns import Turns


@dataclass(eq=False)
class Worker:
    """As much of an engine as turns look at, and what a step of it costs."""

    step_seconds: float
    has_work: bool = True


def table(**workers: Worker) -> Turns:
    return Turns({name: cast("Engine", worker) for name, worker in workers.items()})


def seated(turns: Turns) -> list[Worker]:
    return [cast("Worker", seat.engine) for seat in turns.seats]


def spent(turns: Turns, steps: int) -> dict[str, float]:
    """Seconds that each engine gets in the next steps."""
    before = {seat.model: seat.spent_seconds for seat in turns.seats}
    had = dict.fromkeys(before, 0.0)
    for _ in range(steps):
        seat = turns.next()
        assert seat is not None
        seconds = cast("Worker", seat.engine).step_seconds
        seat.spent_seconds += seconds
        had[seat.model] += seconds
    return had


def test_engines_have_equal_time_whatever_their_steps_cost() -> None:
    had = spent(table(quick=Worker(0.001), slow=Worker(0.05)), 510)
    assert abs(had["quick"] - had["slow"]) <= 0.05
    assert had["quick"] > 0.4


def test_an_engine_without_work_is_passed_over_and_saves_nothing_up() -> None:
    idle = Worker(0.01, has_work=False)
    turns = table(busy=Worker(0.01), idle=idle)
    assert spent(turns, 100)["idle"] == 0.0
    idle.has_work = True
    assert abs(spent(turns, 100)["idle"] - 0.5) < 0.02


def test_without_work_it_is_nobodys_turn() -> None:
    turns = table(one=Worker(0.01, has_work=False))
    assert not turns.has_work
    assert turns.next() is None


def test_an_engine_that_was_replaced_stays_until_it_is_done() -> None:
    old, new = Worker(0.01), Worker(0.01, has_work=False)
    turns = table(model=old)
    turns.join("model", cast("Engine", new))
    turns.dismiss_all_but([cast("Engine", new)])
    assert seated(turns) == [old, new]
    old.has_work = False
    turns.dismiss_all_but([cast("Engine", new)])
    assert seated(turns) == [new]
