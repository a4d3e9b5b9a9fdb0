"""The section about training."""

from typing import Any

from benchmarks.report.goals import Goal, goals
from benchmarks.results import paragraphs, spread, table


def section(data: dict[str, Any]) -> str:
    """Markdown from the JSON of benchmarks.training."""
    loops = data["loops"]
    rows = [
        (
            name,
            spread(entry["images_per_second"]),
            spread(entry["to_plain"]),
            f"{spread(entry['share_of_fp32_peak'], 100.0)} %",
            f"{spread(entry['share_of_bf16_peak'], 100.0)} %",
            f"{entry['test_eps_mse']:.4f}",
        )
        for name, entry in loops.items()
    ]
    peaks = ", ".join(
        f"{name} {spread(value, 1e-9)} GFLOP/s" for name, value in data["peaks"].items()
    )
    plain = loops["plain fp32 loop"]["test_eps_mse"]
    fastest = max(
        (entry for name, entry in loops.items() if name.startswith("ours")),
        key=lambda entry: entry["to_plain"]["median"],
    )
    ratio, mse = fastest["to_plain"], fastest["test_eps_mse"]
    equal = data["equal_loss"]
    times = equal["times_as_fast"]
    twice = [
        Goal(
            "Twice the images per second of the plain fp32 loop, and no larger an error after as"
            " many train steps",
            f"{spread(ratio)} times; error on eps {mse:.4f} against {plain:.4f}",
            ratio["median"] >= 2.0 and mse <= plain,
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
        f" convolution in the same turn ({peaks}). The error on eps of the same test images,"
        f" after {data['train_steps']} train steps of each loop.",
        table(
            (
                "loop",
                "images/s",
                "to the plain loop",
                "of the fp32 peak",
                "of the bf16 peak",
                "error on eps",
            ),
            rows,
        ),
        *missing,
        _equal_loss(equal),
        goals(twice),
    )


def _equal_loss(equal: dict[str, Any]) -> str:
    plain, ours = equal["plain"], equal["ours"]
    begin = (
        f"To equal loss, both from the start, in turns, {equal['train_images']:,} training images,"
        " weights without any average: the plain loop comes to its lowest error,"
        f" {plain['error']:.4f}, after {plain['train_steps']} train steps and"
        f" {plain['seconds']:.0f} s; ours"
    )
    if ours is None:
        return f"{begin} did not get there."
    return (
        f"{begin} is there ({ours['error']:.4f}) after {ours['train_steps']} and"
        f" {ours['seconds']:.0f} s: {equal['times_as_fast']:.3g} times as fast."
    )
