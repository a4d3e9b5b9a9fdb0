"""The section about the engine on a GPU."""

from typing import Any

from benchmarks.report.goals import Goal, goals
from benchmarks.results import milliseconds, number, paragraphs, spread, table


def section(data: dict[str, Any]) -> str:
    """Markdown from the JSON of benchmarks.gpu."""
    parity, default, peer = data["parity"], data["default"], data["peer"]
    rows = [
        (
            str(bucket["rows"]),
            milliseconds(bucket["replay_seconds"]),
            milliseconds(bucket["step_seconds"]),
            spread(bucket["ratio"]),
        )
        for bucket in data["buckets"]
    ]
    worst = max(bucket["ratio"]["median"] for bucket in data["buckets"])
    seconds = data["default_seconds"]["median"]
    ours = data["images"] / data["plain_seconds"]["median"]
    drawn = f"{number(data['images'])} in {number(seconds)} s"
    in_time = seconds < 2.0 if data["images"] == 10_000 else None
    reached = [
        Goal(
            "Engine steps within 1.15x of bare replays at every bucket",
            f"{number(worst)}x at worst",
            worst <= 1.15,
        ),
        Goal("10,000 images at the default setting in under 2 s", drawn, in_time),
    ]
    faster = "At least 3x diffusers with torch.compile in bf16"
    if peer is None:
        against = "diffusers was not measured."
        reached.append(Goal(faster, "-", None))
    else:
        best = max(peer["images_per_second"], key=lambda n: peer["images_per_second"][n])
        theirs = peer["images_per_second"][best]
        against = (
            f"ddpm in {data['plain_steps']} steps: {number(ours)} images per second, diffusers"
            f" ({peer['variant']}) {number(theirs)} at its best batch, {best}."
        )
        ratio = ours / theirs
        reached.append(Goal(faster, f"{number(ratio)}x", ratio >= 3))
    return paragraphs(
        f"On {data['device']}. Every node is on CUDA. Without a visible device, CUDA is refused:"
        f" \u201c{data['refusal']}\u201d. The {data['self_test']}.",
        f"Against the CPU, {parity['images']} images at the defaults: {parity['equal_pixels']:.2%}"
        f" of the pixels are equal, the largest difference is {parity['largest_difference']} of"
        " 255.",
        table(("rows", "bare replay", "engine step", "ratio"), rows),
        f"{number(data['images'])} images at the defaults ({default['sampler']},"
        f" {default['num_steps']} steps, guidance {default['guidance_scale']:g}):"
        f" {spread(data['default_seconds'])} s. {against}",
        goals(reached),
    )
