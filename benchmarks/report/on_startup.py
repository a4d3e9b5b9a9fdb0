"""The section about start-up, memory and room on disk."""

from typing import Any

from benchmarks.peers.processes import OURS
from benchmarks.report.goals import Goal, goals
from benchmarks.results import number, paragraphs, spread, table


def section(data: dict[str, Any]) -> str:
    """Markdown from the JSON of benchmarks.startup."""
    rows = [
        (
            name,
            f"{spread(entry['ready_seconds'])} s",
            f"{spread(entry['resident_bytes'], 1e-6)} MB",
            number(entry["processes"]["median"]),
            "-"
            if entry["installed_bytes"] is None
            else f"{entry['installed_bytes'] / 1e6:,.0f} MB",
        )
        for name, entry in data["peers"].items()
    ]
    ours = data["peers"].get(OURS)
    items = []
    if ours:
        ready, memory = ours["ready_seconds"]["median"], ours["resident_bytes"]["median"]
        items = [
            Goal("Start to SERVING under 2 s", f"{number(ready)} s", ready < 2.0),
            Goal("Resident memory under 300 MB", f"{number(memory / 1e6)} MB", memory < 300e6),
        ]
    sizes = ", ".join(
        f"{what} {number(data[name] / 1e6)} MB"
        for name, what in (
            ("model_bytes", "The embedded model:"),
            ("wheel_bytes", "this project's wheel:"),
            ("image_bytes", "the server's container image (`docker compose build`):"),
        )
        if data[name] is not None
    )
    missing = [f"- {name} did not run: {why}." for name, why in data["unavailable"].items()]
    return paragraphs(
        "From the start of the process until it is ready (ours: SERVING, after self-test and"
        " choice of lanes); resident memory of all its processes after 16 images; what its"
        " packages take on disk. PyTorch comes from PyPI, with its CUDA libraries; wheels for"
        " the CPU alone are smaller.",
        table(("peer", "start to ready", "resident memory", "processes", "installed"), rows),
        *missing,
        f"{sizes}.",
        goals(items) if items else "",
    )
