"""The page of an evaluation: every number of its JSON, in Markdown, beside its pictures."""

from collections.abc import Sequence

from evaluation.markdown import (
    count,
    curve_table,
    heading,
    metric,
    number,
    rows_table,
    share,
    spread_text,
    table,
)
from evaluation.protocol import KERNEL_SUBSETS, NEIGHBOURS
from evaluation.results import Quality, SettingsResult
from evaluation.rows import METRICS, JudgeResult

SAMPLES, PAIRS, CURVE, DENOISING = "samples.png", "closest.png", "curve.png", "denoising.png"
_CURVE_METRICS = (
    ("Frechet distance to floor", "frechet_ratio"),
    ("Label accuracy", "label_accuracy"),
    ("Recall", "recall"),
)
_DIGITS = 12
QUICK = "**A quick look, not the protocol: fewer images, fewer seeds, fewer measurements.**"


def settings_page(result: SettingsResult) -> str:
    """The table of a few settings."""
    return "\n\n".join([rows_table([result.floor, *result.rows]), _judges(result.judges)])


def quality_page(quality: Quality, pictures: str) -> str:
    """The whole page.

    Args:
        quality: what was measured.
        pictures: the folder with the pictures, as the page links to it.
    """
    sections = [
        _introduction(quality),
        _in_short(quality),
        "## Judges\n\n" + _judges(quality.judges) + "\n\n" + _DATA.format(
            md5=table(["file", "md5"], list(quality.dataset.md5.items()))
        ),
        _samples(quality, pictures),
        _labels(quality),
        _classification(quality),
        _memorisation(quality, pictures),
        _denoising(quality, pictures),
        _cost(quality),
        _curve(quality, pictures),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


_DATA = """Real data:

{md5}"""


def _introduction(quality: Quality) -> str:
    model, setting, dataset = quality.model, quality.setting, quality.dataset
    files = table(["file", "sha256"], list(model.files.items()))
    text = (
        f"Protocol version {quality.protocol_version}, measured by `python -m evaluation` on "
        f"{dataset.name} ({count(dataset.num_train_images)} training images, "
        f"{count(dataset.num_test_images)} test images). Samples are drawn by the server's engine "
        f"on {model.provider} at the bundle's defaults, {setting.sampler}, {setting.num_steps} "
        f"steps, guidance {setting.guidance_scale:g} ({setting.rows_per_image} network rows per "
        f"image), and have the training set's share of each label. N = "
        f"{count(quality.num_images)}; seeds {_listed(quality.seeds)}, to which the label is "
        "added."
    )
    title = f"# Quality of {model.name} {model.version}"
    return "\n\n".join([title, *([QUICK] if quality.quick else []), text, files])


def _in_short(quality: Quality) -> str:
    test = quality.references[0]
    rows = [
        [heading(name), spread_text(name, quality.summary[name]), metric(name, value(test))]
        for name, value in METRICS.items()
    ]
    score, found = quality.classification, quality.memorisation
    if score is not None:
        rows.append(["classification accuracy score", share(score.generated), share(score.real)])
    nearer = "nearer to a training image than 1 % of test images"
    rows.append([nearer, share(found.share_below_first_percentile), share(0.01)])
    rows.append(["held-out MSE of eps", number(quality.denoising_error.mean), ""])
    return table(["in short", "samples, mean ± std over seeds", "real test images"], rows)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)


def _judges(judges: dict[str, JudgeResult]) -> str:
    head = ["judge", "network", "sha256", "reads correctly", "real test images"]
    rows = [
        [
            name, judge.network, f"`{judge.sha256[:_DIGITS]}`", share(judge.test_accuracy),
            count(judge.num_test_images),
        ]
        for name, judge in judges.items()
    ]  # fmt: skip
    return table(head, rows)


def _samples(quality: Quality, pictures: str) -> str:
    text = (
        "C1 to C3 are the judges of labels and *labels* is their mean; all distances are those of "
        "judge F's features to the training set. *to floor* is the Frechet distance divided by "
        "that of as many test images. Precision, recall, density and coverage are against as many "
        f"training images, k = {NEIGHBOURS}; KID is the mean of {KERNEL_SUBSETS} subsets and *KID "
        "std* the spread of one of them. Test and training images (the latter against the rest of "
        "the training set) are the floors, the other two the ceilings."
    )
    return "\n\n".join(
        [
            "## Samples",
            f"![Ten samples of each label]({pictures}/{SAMPLES})",
            rows_table([*quality.references, *quality.generated]),
            text,
        ]
    )


def _labels(quality: Quality) -> str:
    names = [name for name in quality.judges if name != "features"]
    head = ["label", "mean", "real", *(cell for name in names for cell in (name, "real"))]
    rows = []
    for label in quality.labels:
        cells = [label.name, share(label.generated_mean), share(label.real_mean)]
        for generated, real in zip(label.generated, label.real, strict=True):
            cells += [share(generated), share(real)]
        rows.append(cells)
    text = (
        "Share of the samples that each judge reads as the label that was asked for, mean over "
        "seeds; *real*: its share of all real test images of that label. Above *real* means "
        "too-typical images: read it beside recall."
    )
    return f"## Labels\n\n{text}\n\n{table(head, rows)}"


def _classification(quality: Quality) -> str:
    score = quality.classification
    if score is None:
        return ""
    text = (
        f"A CNN that learned from {count(score.num_images)} images for {score.epochs} epochs "
        f"(seed {score.seed}) reads this share of the {count(score.num_test_images)} real test "
        f"images. The generated images are those of seed {score.image_seed}."
    )
    rows = [["generated", share(score.generated)], ["real", share(score.real)]]
    return f"## Classification accuracy score\n\n{text}\n\n{table(['learned from', 'score'], rows)}"


def _memorisation(quality: Quality, pictures: str) -> str:
    found = quality.memorisation
    text = (
        f"Distance in pixels (1: one pixel from black to white) of {count(found.num_images)} "
        f"samples (seed {found.seed}) to the nearest training image, beside that of "
        f"{count(found.num_test_images)} test images."
    )
    rows = [
        ["median distance of a sample", number(found.generated_median)],
        ["median distance of a test image", number(found.test_median)],
        ["ratio of the medians (copies: 0)", number(found.median_ratio)],
        ["1 % of the test images are nearer than", number(found.first_percentile)],
        ["share of the samples that are nearer", share(found.share_below_first_percentile)],
        ["samples that are copies", count(found.copies)],
    ]
    pairs = [
        [str(pair.label), str(pair.index), str(pair.image), str(pair.train_row),
         number(pair.distance)]
        for pair in found.closest
    ]  # fmt: skip
    head = ["label", "index", "sample", "training image", "distance"]
    return "\n\n".join(
        [
            f"## Memorisation\n\n{text}",
            table(["", ""], rows),
            "The closest pairs, samples above training images:",
            f"![Samples above the training images nearest to them]({pictures}/{PAIRS})",
            table(head, pairs),
        ]
    )


def _denoising(quality: Quality, pictures: str) -> str:
    error = quality.denoising_error
    text = (
        f"Mean squared error of the predicted noise on test images: {number(error.mean)} over all "
        f"timesteps ({count(error.mean_num_images)} images, one timestep each); by noise level "
        f"({count(error.num_images)} images at each, seed {error.seed}):"
    )
    head = ["t", "log-SNR", "MSE of eps"]
    rows = [[str(p.timestep), number(p.log_snr), number(p.error)] for p in error.points]
    picture = f"![Error by noise level]({pictures}/{DENOISING})"
    return f"## Held-out error of the noise\n\n{text}\n\n{picture}\n\n{table(head, rows)}"


def _cost(quality: Quality) -> str:
    cost = quality.cost
    rows = [
        ["parameters", count(cost.parameters)],
        ["bytes of the bundle's graphs", count(cost.file_bytes)],
        ["multiply-adds of one network row", count(cost.multiply_adds_per_call)],
        ["FLOP of one image", count(cost.flop_per_image)],
        ["training images seen", count(cost.images_seen)],
        ["training FLOP", count(cost.training_flop)],
        ["training, seconds", number(cost.training_seconds)],
        ["trained on", cost.training_machine or ""],
    ]
    paces = [
        [pace.setting.sampler, str(pace.setting.num_steps), f"{pace.setting.guidance_scale:g}",
         count(pace.num_images), number(pace.images_per_second)]
        for pace in cost.images_per_second
    ]  # fmt: skip
    head = ["sampler", "num_steps", "guidance_scale", "N", "images/s"]
    return "\n\n".join(
        [
            "## Cost",
            table(["", ""], rows),
            f"Drawn by one engine on {cost.drawn_on}:",
            table(head, paces),
        ]
    )


def _curve(quality: Quality, pictures: str) -> str:
    if quality.curve is None:
        return ""
    text = (
        "One seed. A guided step costs two network rows. Distances compare at equal N only, their "
        "ratios to the floor at any."
    )
    picture = f"![Quality against num_steps]({pictures}/{CURVE})"
    rows = quality.curve.rows
    tables = [f"{title}:\n\n{curve_table(rows, name)}" for title, name in _CURVE_METRICS]
    whole = rows_table([*quality.curve.floors, *rows])
    parts = ["## Quality against num_steps", text, picture, *tables, "All of it:", whole]
    return "\n\n".join(parts)
