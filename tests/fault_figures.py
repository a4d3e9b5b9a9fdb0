"""What the promise tests measured, as one Markdown table at the end of a run."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Figure:
    """One measured thing: of which promise, what, how much, and what must hold."""

    promise: str
    what: str
    measured: str
    required: str


Record = Callable[[str, object, str], None]
"""Called with what was measured, its value (floats are rounded), and what must hold."""

_FIGURES = pytest.StashKey[list[Figure]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Record:
    """Records a figure of the test's promise, which is the name of its module and of its case."""
    module = (
        request.module.__name__.rpartition(".")[2].removeprefix("test_").removeprefix("promise_")
    )
    parts = [module.replace("_", " ")]
    if hasattr(request.node, "callspec"):
        parts.append(f"({request.node.callspec.id})")
    promise = " ".join(parts)
    figures = request.config.stash.setdefault(_FIGURES, [])

    def record(what: str, measured: object, required: str) -> None:
        value = f"{measured:.4g}" if isinstance(measured, float) else str(measured)
        figures.append(Figure(promise, what, value, required))

    return record


@pytest.fixture(
    params=[pytest.param(5.0, id="short"), pytest.param(1.0, id="full", marks=pytest.mark.fault)]
)
def patience(request: pytest.FixtureRequest) -> float:
    """How much longer than promised something may take: in `make test`, beside whatever else this
    machine does, five times; in `make fault-test` no longer.
    """
    times: float = request.param
    return times


def table(figures: list[Figure]) -> list[str]:
    """Returns the lines of a Markdown table."""
    head = Figure("promise", "what", "measured", "must hold")
    rows = [
        f"| {row.promise} | {row.what} | {row.measured} | {row.required} |"
        for row in (head, *figures)
    ]
    return [rows[0], "|---|---|---|---|", *rows[1:]]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Prints the table, if there is anything in it."""
    figures = config.stash.get(_FIGURES, [])
    if figures:
        terminalreporter.section("figures")
        for line in table(figures):
            terminalreporter.write_line(line)
