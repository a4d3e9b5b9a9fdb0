"""The section about what the engine itself costs."""

from typing import Any

from benchmarks.report.goals import Goal, goals
from benchmarks.results import number, paragraphs, spread


def section(data: dict[str, Any]) -> str:
    """Markdown from the JSON of benchmarks.engine_overhead."""
    ratio = data["ratio"]
    return paragraphs(
        f"The engine with {data['lanes']} lanes, all in use, against bare network calls of as many"
        f" rows in turns ({data['sampler']} on {data['provider']}):"
        f" {number(data['engine_rows_per_second'])} rows per second,"
        f" {number(data['bare_rows_per_second'])} by bare calls.",
        goals([Goal("At least 95 % of bare calls", spread(ratio), ratio["median"] >= 0.95)]),
    )
