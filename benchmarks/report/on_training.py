"""The section about training."""

from typing import Any

from benchmarks.report.goals import Goal, goals
from benchmarks.results import paragraphs, spread, table


def section(data: dict[str, Any]) -> str:
    """Markdown from the JSON of benchmarks.training."""
    loops, peaks = data["loops"], data["peaks"]
    rows = [
        (
            loop,
            spread(entry["images_per_second"]),
            spread(entry["to_plain"]),
            *(f"{spread(entry[f'share_of_{name}_peak'], 100.0)} %" for name in peaks),
            f"{entry['test_eps_mse']:.4f}",
        )
        for loop, entry in loops.items()
    ]
    listed = ", ".join(f"{name} {spread(value, 1e-9)} GFLOP/s" for name, value in peaks.items())
    ratio = max(
        (entry["to_plain"] for name, entry in loops.items() if name.startswith("ours")),
        key=lambda to_plain: float(to_plain["median"]),
    )
    equal = data["equal_loss"]
    times = equal["times_as_fast"]
    twice = [
        Goal(
            "Twice the images per second of the plain fp32 loop",
            f"{spread(ratio)} times",
            ratio["median"] >= 2.0,
        ),
        Goal(
            "Equal loss in half the time of the plain fp32 loop",
            "never as good" if times is None else f"{times:.3g} times as fast",
            times is not None and times >= 2.0,
        ),
    ]
    missing = [f"- {name} did not run: {why}." for name, why in data["missing"].items()]
    return paragraphs(
        f"The embedded model's network, batch {data['batch_size']}, one process on all cores."
        " Three network calls' FLOP per image, against the machine's best matrix product or"
        f" convolution in the same turn ({listed}). The error on eps of the same test images,"
        f" after {data['train_steps']} train steps of each loop, in which ours, which is set to a"
        " whole run, only warms up.",
        table(
            (
                "loop",
                "images/s",
                "to the plain loop",
                *(f"of the {name} peak" for name in peaks),
                "error on eps",
            ),
            rows,
        ),
        *missing,
        _equal_loss(equal),
        goals(twice),
    )


def _equal_loss(equal: dict[str, Any]) -> str:
    """A table of where every run ended, and who was as good as the plain loop, when."""
    plain, ours = equal["plain"], equal["ours"]
    ends = table(
        ("run", "train steps", "seconds", "error on eps at its end"),
        [
            (name, f"{end['train_steps']}", f"{end['seconds']:.0f}", f"{end['error']:.4f}")
            for name, end in equal["at_the_end"].items()
        ],
    )
    begin = (
        f"To equal loss: all from the start, in turns, {equal['train_images']:,} training images,"
        " weights without any average. Each of ours is a whole run, whose learning rate rises and"
        " falls within it; that of the plain loop stays."
    )
    there = (
        f"The plain loop comes to its lowest error, {plain['error']:.4f}, after"
        f" {plain['train_steps']} train steps and {plain['seconds']:.0f} s;"
    )
    if ours is None:
        there += " none of ours did."
    else:
        there += (
            f" {equal['run']} is there ({ours['error']:.4f}) after {ours['train_steps']} and"
            f" {ours['seconds']:.0f} s: {equal['times_as_fast']:.3g} times as fast."
        )
    return paragraphs(begin, ends, there)
