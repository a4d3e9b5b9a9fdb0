"""Goals beside what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal.

    Attributes:
        text: what was to be reached.
        measured: what was, as text.
        met: whether it was; None if there is nothing to tell from.
    """

    text: str
    measured: str
    met: bool | None

    def line(self) -> str:
        """As an item of a list."""
        verdict = {True: "met", False: "**missed**", None: "not measured"}[self.met]
        return f"- {self.text}: {self.measured}, {verdict}."


def goals(items: Sequence[Goal]) -> str:
    """A list under a heading."""
    return "Goals:\n\n" + "\n".join(item.line() for item in items)
