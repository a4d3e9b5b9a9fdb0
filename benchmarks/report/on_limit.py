"""The section about the machine's limit."""

from typing import Any

from benchmarks.report.goals import Goal, goals
from benchmarks.results import milliseconds, number, paragraphs, spread, table

_GOAL_FROM_BATCH = 8


def section(data: dict[str, Any]) -> str:
    """Markdown from the JSON of benchmarks.limit."""
    peaks = table(
        ("what", "GFLOP/s"),
        [(name, spread(value, 1e-9)) for name, value in data["peaks"].items()],
    )
    batches = table(
        ("rows of a call", "GFLOP/s", "share of the peak"),
        [
            (
                batch,
                spread(entry["flop_per_second"], 1e-9),
                _percent(entry["share_of_peak"]),
            )
            for batch, entry in data["batches"].items()
        ],
    )
    profile = data["profile"]
    operators = table(
        ("operator", "nodes", "time of a call", "share"),
        [
            (
                name,
                str(entry["nodes"]),
                milliseconds(entry["seconds"]),
                f"{100 * entry['share']:.1f} %",
            )
            for name, entry in profile["operators"].items()
            if entry["share"] >= 0.005
        ],
    )
    convolutions = data["profile"]["operators"].get("Conv")
    rate = ""
    if convolutions:
        flop = 2 * data["multiply_adds_per_row"] * profile["batch"]
        rate = (
            f" Within Conv alone the network runs at {number(flop / convolutions['seconds'] / 1e9)}"
            " GFLOP/s."
        )
    large = {
        batch: entry["share_of_peak"]["median"]
        for batch, entry in data["batches"].items()
        if int(batch) >= _GOAL_FROM_BATCH
    }
    goal = (
        Goal(
            f"A network call of {_GOAL_FROM_BATCH} rows and more at 75 % of the peak",
            f"{100 * min(large.values()):.0f} to {100 * max(large.values()):.0f} %",
            min(large.values()) >= 0.75,
        )
        if large
        else Goal("A network call at 75 % of the peak", "no large batch", None)
    )
    return paragraphs(
        f"A row of the network is {number(data['multiply_adds_per_row'] / 1e6)} M multiply-adds"
        " (Conv, ConvTranspose, Gemm, MatMul), counted from unet.onnx."
        f" {data['threads']} threads. The peak is the best of these in the same turn, median"
        " (range) over turns:",
        peaks,
        batches,
        f"Where the time of a call with {profile['batch']} rows goes, by ONNX Runtime's"
        f" profiler ({milliseconds(profile['call_seconds'])} a call):" + rate,
        operators,
        goals([goal]),
    )


def _percent(value: dict[str, float]) -> str:
    return f"{spread(value, 100.0)} %"
