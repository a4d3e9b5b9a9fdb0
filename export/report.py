"""The result of a verification: figures with their bounds, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One measured figure.

    Attributes:
        name: what was measured.
        measured: the figure.
        at_most: largest value that passes; None for no such bound.
        at_least: smallest value that passes; None for no such bound. Without bounds the figure is
            for information.
    """

    name: str
    measured: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the figure is within its bounds. NaN is not."""
        return (self.at_most is None or self.measured <= self.at_most) and (
            self.at_least is None or self.measured >= self.at_least
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; bounds that there are not are left out."""
        bounds = {"at_most": self.at_most, "at_least": self.at_least}
        return {
            "name": self.name,
            "measured": self.measured,
            **{name: value for name, value in bounds.items() if value is not None},
            "passed": self.passed,
        }


def failed(checks: Sequence[Check]) -> list[Check]:
    """Those that are out of their bounds."""
    return [check for check in checks if not check.passed]


def format_table(checks: Sequence[Check]) -> str:
    """Aligned plain text, one line per check."""
    lines = [("check", "measured", "required", "")]
    for check in checks:
        required = "-"
        verdict = "for information"
        if check.at_most is not None:
            required = f"at most {check.at_most:g}"
        elif check.at_least is not None:
            required = f"at least {check.at_least:g}"
        if required != "-":
            verdict = "ok" if check.passed else "FAILED"
        lines.append((check.name, f"{check.measured:.6g}", required, verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}}  {measured:>{widths[1]}}  {required:<{widths[2]}}  {verdict}".rstrip()
        for name, measured, required, verdict in lines
    )
