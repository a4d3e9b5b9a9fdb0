"""The whole protocol on one bundle, and a few settings of one."""

from collections.abc import Callable, Sequence
from statistics import fmean

from evaluation.measuring import GAUSSIANS, NOISE, TEST, TRAINING, Evaluator
from evaluation.model_results import (
    default_setting,
    measure_classification,
    measure_cost,
    measure_denoising_error,
    measure_memorisation,
)
from evaluation.protocol import PROTOCOL_VERSION, CurvePlan, Protocol, require_seed
from evaluation.results import (
    Curve,
    DatasetResult,
    LabelResult,
    ModelResult,
    Quality,
    SettingsResult,
)
from evaluation.rows import METRICS, JudgeResult, Row, spread
from evaluation.setting import Setting

Say = Callable[[str], None]
"""Is told about each measurement that is finished, in one line."""


def evaluate(evaluator: Evaluator, protocol: Protocol, say: Say) -> Quality:
    """Measure all that ``protocol`` asks for, at the bundle's defaults.

    What the evaluator's store holds already is not measured again.

    Raises:
        RuntimeError: the network failed.
        ValueError: a value is out of range.
    """
    setting = default_setting(evaluator)
    n, seeds = protocol.num_images, protocol.seeds
    references = []
    for source in (TEST, TRAINING, GAUSSIANS, NOISE):
        references.append(evaluator.reference(source, n))
        say(in_short(references[-1]))
    generated = []
    for seed in seeds:
        generated.append(evaluator.generated(setting, seed, n))
        say(in_short(generated[-1]))
    memorisation = measure_memorisation(evaluator, setting, seeds[0], n, protocol.closest_pairs)
    say(f"memorisation: median ratio {memorisation.median_ratio:.3f}")
    denoising_error = measure_denoising_error(
        evaluator, protocol.denoising_images, protocol.denoising_timesteps
    )
    say(f"eps-MSE: {denoising_error.mean:.5f}")
    cost = measure_cost(evaluator, setting, protocol)
    classification = None
    if protocol.classification_images:
        classification = measure_classification(
            evaluator, setting, seeds[0], protocol.classification_images,
            protocol.classification_epochs,
        )  # fmt: skip
        say(f"CAS: {classification.generated:.2%} (real images: {classification.real:.2%})")
    judges = judge_results(evaluator)
    return Quality(
        protocol_version=PROTOCOL_VERSION,
        quick=protocol.quick,
        model=model_result(evaluator),
        dataset=dataset_result(evaluator),
        setting=setting,
        seeds=list(seeds),
        num_images=n,
        judges=_brief(judges),
        references=[row.brief() for row in references],
        generated=[row.brief() for row in generated],
        summary={
            name: spread([value(row) for row in generated]) for name, value in METRICS.items()
        },
        labels=label_results(evaluator, generated, judges),
        classification=classification,
        memorisation=memorisation,
        denoising_error=denoising_error,
        cost=cost,
        curve=None if protocol.curve is None else measure_curve(evaluator, protocol.curve, say),
    )


def measure_curve(evaluator: Evaluator, plan: CurvePlan, say: Say) -> Curve:
    """Quality at every setting of ``plan``, and the floor at every N."""
    rows = []
    for setting in plan.settings:
        rows.append(evaluator.generated(setting, plan.seed, plan.num_images_at(setting)).brief())
        say(in_short(rows[-1]))
    sizes = sorted({row.num_images for row in rows}, reverse=True)
    return Curve(floors=[evaluator.reference(TEST, n).brief() for n in sizes], rows=rows)


def measure_settings(
    evaluator: Evaluator, settings: Sequence[Setting], seed: int, num_images: int, say: Say
) -> SettingsResult:
    """A row per setting, beside the floor.

    Raises:
        RuntimeError: the network failed.
        ValueError: a value is out of range; nothing was measured then.
    """
    require_seed(seed)
    for setting in settings:
        evaluator.source.identity(setting)  # refuses what the bundle has not, before the hours
    floor = evaluator.reference(TEST, num_images).brief()
    say(in_short(floor))
    rows = []
    for setting in settings:
        rows.append(evaluator.generated(setting, seed, num_images).brief())
        say(in_short(rows[-1]))
    return SettingsResult(
        protocol_version=PROTOCOL_VERSION,
        model=model_result(evaluator),
        dataset=dataset_result(evaluator),
        judges=_brief(judge_results(evaluator)),
        floor=floor,
        rows=rows,
    )


def in_short(row: Row) -> str:
    """One line about a row."""
    how = row.source if row.setting is None else f"{row.setting} seed {row.seed}"
    return (
        f"{how}, N {row.num_images:,}: labels {row.label_accuracy:.2%}, "
        f"ratio {row.frechet_ratio:.2f}, recall {row.recall:.3f}"
    )


def judge_results(evaluator: Evaluator) -> dict[str, JudgeResult]:
    """Every judge on all real test images, by name."""
    judges = (evaluator.judges.features, *evaluator.judges.labels)
    return {judge.name: evaluator.judge_result(judge) for judge in judges}


def _brief(judges: dict[str, JudgeResult]) -> dict[str, JudgeResult]:
    return {name: judge.brief() for name, judge in judges.items()}


def label_results(
    evaluator: Evaluator, generated: Sequence[Row], judges: dict[str, JudgeResult]
) -> list[LabelResult]:
    """Accuracy of every label, beside that of the real test images of the label."""
    results = []
    for label, name in enumerate(evaluator.dataset.label_names):
        of_generated, of_real = [], []
        for j, judge in enumerate(evaluator.judges.labels):
            of_seeds = [(row.label_accuracy_per_label or [])[j][label] for row in generated]
            of_generated.append(_mean(of_seeds))
            of_real.append((judges[judge.name].test_accuracy_per_label or [])[label])
        results.append(
            LabelResult(
                name=name,
                generated=of_generated,
                generated_mean=_mean(of_generated),
                real=of_real,
                real_mean=_mean(of_real),
            )
        )
    return results


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def model_result(evaluator: Evaluator) -> ModelResult:
    """Which bundle is evaluated."""
    manifest = evaluator.source.manifest
    return ModelResult(
        name=manifest.name,
        version=manifest.version,
        files={name: entry.sha256 for name, entry in manifest.files.items()},
        provider=evaluator.source.provider,
    )


def dataset_result(evaluator: Evaluator) -> DatasetResult:
    """Which real images it is compared with."""
    dataset = evaluator.dataset
    return DatasetResult(
        name=evaluator.dataset_name,
        md5=dataset.checksums,
        num_train_images=len(dataset.train.labels),
        num_test_images=len(dataset.test.labels),
    )
