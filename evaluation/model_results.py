"""Measurements of a bundle that no other set of images shares: each stored, each a typed result."""

import math
import os
import platform
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.cost import cost
from evaluation.denoising_error import denoising_error, mean_denoising_error, spread_timesteps
from evaluation.measuring import Evaluator
from evaluation.memorisation import memorisation
from evaluation.protocol import REFERENCE_SEED, Protocol
from evaluation.reference_images import disjoint_subsets
from evaluation.results import (
    Classification,
    ClassificationScore,
    CostResult,
    DenoisingError,
    DenoisingPoint,
    MemorisationResult,
    Pace,
    Pair,
)
from evaluation.setting import Setting
from serving.cpu_count import usable_cpus

_KIND, _PACES = "measurements", "paces"
_WARM_UP_IMAGES = 16


def default_setting(evaluator: Evaluator) -> Setting:
    """What a request gets that names no setting."""
    defaults = evaluator.source.manifest.defaults
    return Setting(defaults.sampler, defaults.num_steps, defaults.guidance_scale)


def measure_memorisation(
    evaluator: Evaluator, setting: Setting, seed: int, num_images: int, num_pairs: int
) -> MemorisationResult:
    """Distances from samples to training images, beside those of as many test images."""
    details = {
        "model": evaluator.source.identity(setting), "seed": seed, "num_images": num_images,
        "num_pairs": num_pairs,
    }  # fmt: skip

    def compute() -> MemorisationResult:
        drawn = evaluator.drawn(setting, seed, num_images)
        [(test, _)] = disjoint_subsets(evaluator.dataset.test, [num_images], REFERENCE_SEED)
        train = evaluator.dataset.train.images[:, None]
        found = memorisation(drawn.images, test, train, num_pairs=num_pairs)
        pairs = zip(found.closest, found.closest_rows, found.closest_distances, strict=True)
        return MemorisationResult(
            num_images=num_images,
            num_test_images=len(test),
            seed=seed,
            median_ratio=found.median_ratio,
            share_below_first_percentile=found.share_below_first_percentile,
            generated_median=found.generated_median,
            test_median=found.test_median,
            first_percentile=found.first_percentile,
            copies=found.copies,
            closest=[
                Pair(
                    label=int(drawn.labels[image]),
                    index=int(drawn.indexes[image]),
                    image=int(image),
                    train_row=int(row),
                    distance=float(distance),
                )
                for image, row, distance in pairs
            ],
        )

    key = evaluator.key("memorisation", **details)
    return evaluator.store.result(_KIND, key, MemorisationResult, compute)


def measure_classification(
    evaluator: Evaluator, setting: Setting, image_seed: int, num_images: int, epochs: int
) -> Classification:
    """What a CNN learns from generated images, beside what it learns from as many real ones."""
    test = evaluator.dataset.test
    details = {"num_images": num_images, "epochs": epochs, "seed": REFERENCE_SEED}

    def score(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> ClassificationScore:
        # PyTorch takes seconds to import, and a stored score does not need it.
        from evaluation.classification import classification_accuracy_score  # noqa: PLC0415

        accuracy = classification_accuracy_score(
            images, labels, test.images[:, None], test.labels, seed=REFERENCE_SEED, epochs=epochs
        )
        return ClassificationScore(accuracy=accuracy)

    def of_real() -> ClassificationScore:
        [(images, labels)] = disjoint_subsets(evaluator.dataset.train, [num_images], REFERENCE_SEED)
        return score(images, labels)

    def of_generated() -> ClassificationScore:
        drawn = evaluator.drawn(setting, image_seed, num_images)
        return score(drawn.images, drawn.labels)

    drawn_how = {"model": evaluator.source.identity(setting), "image_seed": image_seed}
    store = evaluator.store
    generated = store.result(
        _KIND,
        evaluator.key("classification", **details, **drawn_how),
        ClassificationScore,
        of_generated,
    )
    real = store.result(
        _KIND, evaluator.key("classification", **details), ClassificationScore, of_real
    )
    return Classification(
        generated=generated.accuracy,
        real=real.accuracy,
        num_images=num_images,
        num_test_images=len(test.labels),
        epochs=epochs,
        seed=REFERENCE_SEED,
        image_seed=image_seed,
    )


def measure_denoising_error(
    evaluator: Evaluator, num_images: int, num_timesteps: int
) -> DenoisingError:
    """Held-out error of the predicted eps, by noise level and in the mean."""
    source, test = evaluator.source, evaluator.dataset.test
    schedule = source.model.schedule
    timesteps = np.unique(spread_timesteps(schedule.num_train_timesteps, num_timesteps))
    details = {
        "model": source.identity(), "num_images": num_images, "timesteps": timesteps.tolist(),
    }  # fmt: skip

    def compute() -> DenoisingError:
        [(images, labels)] = disjoint_subsets(test, [num_images], REFERENCE_SEED)
        errors = denoising_error(
            source.model, source.network, images, labels,
            timesteps=timesteps.tolist(), seed=REFERENCE_SEED,
        )  # fmt: skip
        mean = mean_denoising_error(
            source.model, source.network, test.images[:, None], test.labels.astype(np.int64),
            seed=REFERENCE_SEED,
        )  # fmt: skip
        abar = schedule.alphas_cumprod
        return DenoisingError(
            mean=mean,
            mean_num_images=len(test.labels),
            num_images=num_images,
            seed=REFERENCE_SEED,
            points=[
                DenoisingPoint(
                    timestep=t, log_snr=math.log(abar[t] / (1 - abar[t])), error=float(error)
                )
                for t, error in zip(timesteps.tolist(), errors, strict=True)
            ],
        )

    key = evaluator.key("denoising_error", **details)
    return evaluator.store.result(_KIND, key, DenoisingError, compute)


def measure_cost(evaluator: Evaluator, setting: Setting, protocol: Protocol) -> CostResult:
    """Size, arithmetic and training from the manifest; the pace from the clock."""
    source = evaluator.source
    found = cost(source.bundle)
    steps = {*protocol.pace_num_steps, setting.num_steps}
    usable = sorted(n for n in steps if n <= source.model.schedule.num_train_timesteps)
    return CostResult(
        parameters=found.parameters,
        file_bytes=found.file_bytes,
        multiply_adds_per_call=found.multiply_adds_per_call,
        flop_per_image=found.flop_per_image(setting.rows_per_image),
        images_seen=found.images_seen,
        training_flop=found.training_flop,
        training_seconds=found.training_seconds,
        training_machine=found.training_machine,
        drawn_on=_machine(source.provider),
        images_per_second=[
            measure_pace(
                evaluator,
                Setting(setting.sampler, num_steps, setting.guidance_scale),
                protocol.pace_images,
            )
            for num_steps in usable
        ],
    )


def measure_pace(evaluator: Evaluator, setting: Setting, num_images: int) -> Pace:
    """Images per second, drawn by one engine with its batches full.

    Stored like everything else; what a busy machine gave is measured anew once the store's paces
    are deleted.
    """
    source = evaluator.source

    def images(total: int) -> None:
        share = -(-total // evaluator.num_labels)
        source.draw(
            np.full(evaluator.num_labels, share, np.int64),
            REFERENCE_SEED,
            setting.sampler,
            setting.num_steps,
            setting.guidance_scale,
        )

    def compute() -> Pace:
        images(_WARM_UP_IMAGES)
        begin = time.perf_counter()
        images(num_images)
        seconds = time.perf_counter() - begin
        drawn = -(-num_images // evaluator.num_labels) * evaluator.num_labels
        return Pace(setting=setting, num_images=drawn, images_per_second=drawn / seconds)

    machine = _machine(source.provider)
    key = {
        "what": "pace", "model": source.identity(setting), "machine": machine,
        "num_images": num_images,
    }  # fmt: skip
    return evaluator.store.result(_PACES, key, Pace, compute)


def _machine(provider: str) -> str:
    """Where images are drawn: provider, number of CPUs, and what they are where Linux says it."""
    processor = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    return f"{provider}; {usable_cpus()} of {os.cpu_count()} CPUs, {processor}"
