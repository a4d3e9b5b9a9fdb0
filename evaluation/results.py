"""What an evaluation found, as values that JSON can hold. Shares are in [0, 1]."""

from typing import Any

from pydantic import FiniteFloat

from evaluation.rows import JudgeResult, Result, Row, Spread
from evaluation.setting import Setting

CLOCK_FIELDS = frozenset({"images_per_second", "drawn_on"})
"""Fields that another run of the same evaluation need not repeat; no manifest gets them."""


class LabelResult(Result):
    """Label accuracy among the images of one label.

    Attributes:
        name: of the label.
        generated: [judge], mean over seeds; None where there are no images.
        generated_mean: over judges too.
        real: [judge], on all real test images of the label.
        real_mean: over judges.
    """

    name: str
    generated: list[FiniteFloat | None]
    generated_mean: FiniteFloat | None
    real: list[FiniteFloat | None]
    real_mean: FiniteFloat | None


class Classification(Result):
    """Classification accuracy score: what a CNN reads that learned from these images only.

    Attributes:
        generated: share of the real test images, after generated ones.
        real: the same after as many real training images.
        num_images: that each of them learned from.
        num_test_images: that each of them was tested on.
        epochs: passes over the images.
        seed: of the CNN.
        image_seed: the generated images' label y was drawn with image_seed + y.
    """

    generated: FiniteFloat
    real: FiniteFloat
    num_images: int
    num_test_images: int
    epochs: int
    seed: int
    image_seed: int


class ClassificationScore(Result):
    """Share of real test images that a CNN reads after one set of images."""

    accuracy: FiniteFloat


class Pair(Result):
    """A sample and the training image nearest to it.

    Attributes:
        label, index: the sample is Generate(label, seed + label, first_index=index).
        image: its place among the samples.
        train_row: the training image's place in the training set.
        distance: Euclidean; 1 is one pixel from black to white.
    """

    label: int
    index: int
    image: int
    train_row: int
    distance: FiniteFloat


class MemorisationResult(Result):
    """How close samples come to training images, beside how close test images come.

    Attributes:
        num_images: samples.
        num_test_images: real test images that they are compared with.
        seed: of the samples.
        median_ratio: of median distances, samples over test images.
        share_below_first_percentile: 0.01 for samples as new as test images.
        generated_median, test_median, first_percentile: distances; 1 is one pixel black to white.
        copies: samples that equal a training image to the bit.
        closest: the pairs nearest to each other, nearest first.
    """

    num_images: int
    num_test_images: int
    seed: int
    median_ratio: FiniteFloat
    share_below_first_percentile: FiniteFloat
    generated_median: FiniteFloat
    test_median: FiniteFloat
    first_percentile: FiniteFloat
    copies: int
    closest: list[Pair]


class DenoisingPoint(Result):
    """Mean squared error of eps at one noise level; log_snr is ln(abar / (1 - abar))."""

    timestep: int
    log_snr: FiniteFloat
    error: FiniteFloat


class DenoisingError(Result):
    """Held-out error of the noise prediction.

    Attributes:
        mean: over all timesteps: training's loss, on mean_num_images test images.
        mean_num_images: each at one timestep.
        num_images: test images at each of the points.
        seed: of the noise.
        points: by rising timestep.
    """

    mean: FiniteFloat
    mean_num_images: int
    num_images: int
    seed: int
    points: list[DenoisingPoint]


class Pace(Result):
    """How fast images are drawn at a number of steps."""

    setting: Setting
    num_images: int
    images_per_second: FiniteFloat


class CostResult(Result):
    """What a bundle costs; None where its manifest does not say. See evaluation.cost."""

    parameters: int | None
    file_bytes: int
    multiply_adds_per_call: int | None
    flop_per_image: int | None
    images_seen: int | None
    training_flop: int | None
    training_seconds: FiniteFloat | None
    training_machine: str | None
    drawn_on: str
    images_per_second: list[Pace]


class Curve(Result):
    """Quality against num_steps. The floors are the test images at each N that occurs."""

    floors: list[Row]
    rows: list[Row]


class ModelResult(Result):
    """Which bundle this is about. File name -> sha256; provider: where its network ran."""

    name: str
    version: str
    files: dict[str, str]
    provider: str


class DatasetResult(Result):
    """The real data, with the md5 of each raw file."""

    name: str
    md5: dict[str, str]
    num_train_images: int
    num_test_images: int


class SettingsResult(Result):
    """A few settings, measured beside the floor at the same N."""

    protocol_version: int
    model: ModelResult
    dataset: DatasetResult
    judges: dict[str, JudgeResult]
    floor: Row
    rows: list[Row]


class Quality(Result):
    """An evaluation as a whole.

    Attributes:
        protocol_version: numbers of different versions do not compare.
        quick: true if this is not the full protocol.
        model, dataset: what was evaluated, against what.
        judges: by name; ``features`` is F, the others are C.
        references: floors (real images) and ceilings (what no model should come near to), at N.
        generated: one row per seed, at ``setting``.
        summary: over these seeds, by name of the metric.
        labels: in their order.
        classification, memorisation, denoising_error, cost, curve: None: not measured.
    """

    protocol_version: int
    quick: bool
    model: ModelResult
    dataset: DatasetResult
    setting: Setting
    seeds: list[int]
    num_images: int
    judges: dict[str, JudgeResult]
    references: list[Row]
    generated: list[Row]
    summary: dict[str, Spread]
    labels: list[LabelResult]
    classification: Classification | None
    memorisation: MemorisationResult
    denoising_error: DenoisingError
    cost: CostResult
    curve: Curve | None

    def for_manifest(self) -> dict[str, Any]:
        """The same numbers without those that the clock or the machine makes."""
        cleaned = _without_clock(self.model_dump(mode="json"))
        assert isinstance(cleaned, dict)
        return cleaned


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: part for name, part in value.items() if name not in CLOCK_FIELDS}
        return {name: _without_clock(part) for name, part in kept.items()}
    if isinstance(value, list):
        return [_without_clock(part) for part in value]
    return value
