"""The section about the engine on a GPU."""

from typing import Any

from benchmarks.report.goals import Goal, goals
from benchmarks.results import milliseconds, number, paragraphs, spread, table


def section(data: dict[str, Any]) -> str:
    """Markdown from the JSON of benchmarks.gpu."""
    models = data["models"]
    return paragraphs(
        f"On {data['device']}. Every node is on CUDA. Without a visible device, CUDA is refused:"
        f" \u201c{data['refusal']}\u201d.",
        _drawn(data),
        "Of each bucket: a bare replay of its CUDA graph, again and again; the same by two workers"
        " side by side, which is what the engine has; and a step of the engine with all lanes in"
        " use. Each is the time per bucket. The ratio is that of a step and a bare replay.",
        *(_buckets(model) for model in models),
        *(_proof(model) for model in models),
        goals(_goals(data)),
    )


def _drawn(data: dict[str, Any]) -> str:
    """What was drawn, and how fast."""
    default, images = data["models"][0]["default"], data["models"][0]["images"]
    rows = [
        (
            model["name"],
            spread(model["default_seconds"]) + " s",
            spread(model["one_seconds"], 1e3) + " ms",
            number(images / model["plain_seconds"]["median"]),
        )
        for model in data["models"]
    ]
    if data["peer"] is not None:
        variant, rates = data["peer"]["variant"], data["peer"]["images_per_second"]
        rows += [
            (f"diffusers, {variant}, {size} images at once", "-", "-", number(rate))
            for size, rate in rates.items()
        ]
    heading = f"{number(images)} images at the defaults"
    plain = f"images/s, ddpm in {data['plain_steps']} steps"
    return paragraphs(
        f"The defaults are {default['sampler']}, {default['num_steps']} steps, guidance"
        f" {default['guidance_scale']:g}.",
        table(("model", heading, "one image", plain), rows),
    )


def _buckets(model: dict[str, Any]) -> str:
    rows = [
        (
            str(bucket["rows"]),
            milliseconds(bucket["replay_seconds"]),
            milliseconds(bucket["both_seconds"]),
            milliseconds(bucket["step_seconds"]),
            spread(bucket["ratio"]),
        )
        for bucket in model["buckets"]
    ]
    heading = f"{model['name']}: rows"
    return table((heading, "bare replay", "by two workers", "engine step", "ratio"), rows)


def _proof(model: dict[str, Any]) -> str:
    same = model["parity"]
    return (
        f"{model['name']}: {model['self_test']}. Against the same bundle on the CPU,"
        f" {same['images']} images at the defaults: {same['equal_pixels']:.3%} of the pixels are"
        f" equal, the largest difference is {same['largest_difference']} of 255."
    )


def _goals(data: dict[str, Any]) -> list[Goal]:
    """Those of the ratio for every model; of the rest for the fastest."""
    reached = []
    for model in data["models"]:
        worst = max(bucket["ratio"]["median"] for bucket in model["buckets"])
        reached.append(
            Goal(
                f"{model['name']}: engine steps within 1.15x of bare replays at every bucket",
                f"{number(worst)}x at worst",
                worst <= 1.15,
            )
        )
    for model in data["models"]:
        seconds, images = model["default_seconds"]["median"], model["images"]
        reached.append(
            Goal(
                f"{model['name']}: 10,000 images at the default setting in under 2 s",
                f"{number(images)} in {number(seconds)} s",
                seconds < 2.0 if images == 10_000 else None,
            )
        )
    for model in data["models"]:
        goal = f"{model['name']}: at least 3x diffusers with torch.compile in bf16"
        if data["peer"] is None:
            reached.append(Goal(goal, "-", None))
        else:
            best = max(data["peer"]["images_per_second"].values())
            ratio = model["images"] / model["plain_seconds"]["median"] / best
            reached.append(Goal(goal, f"{number(ratio)}x", ratio >= 3))
    return reached
