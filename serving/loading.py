"""From a bundle on disk to an engine that has proved itself."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.bundle import BundleError, Manifest, load_bundle
from serving.engine import Engine
from serving.engine_model import EngineModel
from serving.lane_count import CANDIDATES, measure_lane_count
from serving.network import (
    AnyNetwork,
    Provider,
    ProviderError,
    embedding_table,
    make_network,
    resolve_provider,
)
from serving.scheduling import SchedulingPolicy
from serving.self_test import BATCH_SIZES, SelfTestReport, run_self_test
from serving.step_networks import DeviceNetwork
from serving.validation import ServedModel

LARGEST_STEP_DIFFERENCE = 1e-3
"""Between images in [-1, 1] that a device and NumPy draw with the same eps: an eighth of what a
byte of a pixel stands for. It should be 0; beyond this the device computes something else."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model, ready to be run.

    Attributes:
        served: what the edge knows about it.
        engine: not started, without work.
        provider: what the network really runs on.
        report: what the self-test found.
    """

    served: ServedModel
    engine: Engine
    provider: Provider
    report: SelfTestReport


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine of each model is made; serving.engine.Engine says what each value means.

    Attributes:
        max_lanes: "auto" for what measure_lane_count finds.
        usual_lanes: beside a number of those; None for all of them.
    """

    max_lanes: int | Literal["auto"] = "auto"
    usual_lanes: int | None = None
    max_queued_images: int = 4096
    max_queued_requests: int = 1024
    policy: SchedulingPolicy = "srpt"
    cache_bytes: int = 0


def load_models(
    paths: tuple[Path, ...],
    *,
    provider: str,
    num_threads: int | None,
    spin: bool = False,
    settings: EngineSettings,
) -> list[LoadedModel]:
    """Loads bundles, makes their sessions and runs their self-tests, which are the warm-up too.

    Raises:
        BundleError: one line; a bundle is unusable, or two have one name.
        ProviderError: one line; the provider asked for cannot be had.
    """
    chosen = resolve_provider(provider)
    loaded: dict[str, LoadedModel] = {}
    for path in paths:
        model = load_model(path, chosen, num_threads, settings, spin=spin)
        if model.served.name in loaded:
            raise BundleError(
                f"bundle {str(path)!r}: a model named {model.served.name!r} is loaded already"
            )
        loaded[model.served.name] = model
    return list(loaded.values())


def load_model(
    path: Path,
    provider: Provider,
    num_threads: int | None,
    settings: EngineSettings,
    *,
    spin: bool = False,
) -> LoadedModel:
    """Loads one bundle, as load_models does.

    Raises:
        BundleError, ProviderError: as load_models does.
    """
    bundle = load_bundle(path)
    manifest = bundle.manifest
    fixed = settings.max_lanes
    network = make_network(
        bundle, provider, num_threads, spin=spin, max_lanes=None if fixed == "auto" else fixed
    )
    model = EngineModel.from_manifest(manifest, embedding_table(bundle, num_threads=num_threads))
    # Where batches are padded, the sizes that are run are the buckets, and all of them are tried.
    sizes = network.buckets or BATCH_SIZES
    try:
        measured = measure_lane_count(
            model,
            network,
            candidates=_candidates(network, fixed),
            together=_together(network, spin=spin),
        )
    except RuntimeError as error:
        raise BundleError(f"bundle {str(path)!r}: {error}") from error
    if fixed == "auto":
        max_lanes, usual_lanes = measured.max_lanes, measured.usual_lanes
    else:
        max_lanes, usual_lanes = fixed, settings.usual_lanes or fixed
    lanes = f"{usual_lanes} lanes"
    if max_lanes > usual_lanes:
        lanes += f", {max_lanes} while many requests wait"
    _log.info("%s %s: %s; %s", manifest.name, manifest.version, lanes, measured.summary())
    report = run_self_test(model, network, max_lanes=max_lanes, batch_sizes=sizes)
    if not report.finite:
        raise BundleError(f"bundle {str(path)!r}: {report.summary()}")
    if (report.step_difference or 0.0) > LARGEST_STEP_DIFFERENCE:
        raise ProviderError(f"{provider} does not draw what it should: {report.summary()}")
    level = logging.INFO if report.bit_equal else logging.WARNING
    _log.log(level, "%s %s on %s: %s", manifest.name, manifest.version, provider, report.summary())
    engine = Engine(
        model,
        network,
        max_lanes=max_lanes,
        usual_lanes=usual_lanes,
        max_queued_images=settings.max_queued_images,
        max_queued_requests=settings.max_queued_requests,
        policy=settings.policy,
        cache_bytes=settings.cache_bytes,
        padded_rows=network.padded_rows,
        step_seconds=measured.step_seconds,
        together=measured.together,
    )
    return LoadedModel(_served(manifest), engine, provider, report)


def _together(network: AnyNetwork, *, spin: bool) -> bool | None:
    """Whether all workers compute one image alone; None for whatever is sooner."""
    if isinstance(network, DeviceNetwork):
        return False  # the image is in the memory of one of them
    return True if spin else None  # who has the machine to itself says so


def _candidates(network: AnyNetwork, fixed: int | Literal["auto"]) -> tuple[int, ...] | None:
    """Lanes to time; None where the network says how many it has room for."""
    if fixed != "auto":  # two sizes, and no large one: for the pace only
        return tuple(sorted({1, min(fixed, 64)}))
    if isinstance(network, DeviceNetwork):
        return None
    # Elsewhere a step is padded to more, and would look slower than it need be.
    return tuple(lanes for lanes in CANDIDATES if network.padded_rows(lanes) == lanes)


def _served(manifest: Manifest) -> ServedModel:
    channels, height, width = manifest.image_shape
    return ServedModel(
        name=manifest.name,
        version=manifest.version,
        label_names=tuple(manifest.label_names),
        channels=channels,
        height=height,
        width=width,
        num_train_timesteps=manifest.schedule.num_train_timesteps,
        default_sampler=manifest.defaults.sampler,
        default_num_steps=manifest.defaults.num_steps,
        default_guidance_scale=manifest.defaults.guidance_scale,
        train_label_counts=manifest.train_label_counts,
    )
