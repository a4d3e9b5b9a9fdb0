"""Whose turn it is: engines share the time of their threads equally, whatever their steps cost."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from serving.engine import Engine


@dataclass(slots=True, eq=False)
class Seat:
    """An engine at the table, and what it has had of the threads.

    Attributes:
        spent_seconds: of its steps; more where it was without work, so that it cannot save up.
        had_work: when it was last looked at.
    """

    model: str
    engine: Engine
    spent_seconds: float = 0.0
    had_work: bool = False


class Turns:
    """The engines that have threads in common (start-time fair queueing).

    Whoever owns the engines takes turns; whoever lets engines join or leave holds a lock of the
    caller's.

    Attributes:
        seats: of all engines that may still have something to do.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.seats = tuple(Seat(model, engine) for model, engine in engines.items())
        self._now_served_seconds = 0.0  # what the engine had spent whose turn came last

    @property
    def has_work(self) -> bool:
        """Whether any engine has."""
        return any(seat.engine.has_work for seat in self.seats)

    def join(self, model: str, engine: Engine) -> None:
        """Gives an engine a seat."""
        self.seats = (*self.seats, Seat(model, engine))

    def dismiss_all_but(self, engines: Iterable[Engine]) -> None:
        """Lets go of the engines that are not among these and are done."""
        kept = set(map(id, engines))
        self.seats = tuple(
            seat for seat in self.seats if seat.engine.has_work or id(seat.engine) in kept
        )

    def next(self, passed: Collection[Seat] = ()) -> Seat | None:
        """The one with the least time of those with work, except who has `passed`."""
        chosen: Seat | None = None
        for seat in self.seats:
            has_work = seat.engine.has_work
            if has_work and not seat.had_work:
                seat.spent_seconds = max(seat.spent_seconds, self._now_served_seconds)
            seat.had_work = has_work
            if seat in passed:
                continue
            if has_work and (chosen is None or seat.spent_seconds < chosen.spent_seconds):
                chosen = seat
        if chosen is not None:
            self._now_served_seconds = chosen.spent_seconds
        return chosen
