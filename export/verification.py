"""Proof that the two graphs are the PyTorch model: the same eps, and the same images.

Every number is computed on the CPU in float32, in PyTorch and in ONNX Runtime.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto
from tqdm import tqdm

from diffusion.noise import standard_normal
from diffusion.plan import Float32Array, Int64Array
from diffusion.reference import Network, sample, to_uint8
from diffusion.samplers import make_plan
from diffusion.schedule import Schedule
from export.graphs import OPSET, Graphs
from export.report import Check, failed
from export.sessions import ONNXRUNTIME_VERSION, OnnxModel
from export.structure import (
    GraphError,
    Signature,
    check_signature,
    external_tensors,
    fixed_batch_axes,
)
from training.config import ModelConfig
from training.model import DiffusionModel

BATCH_SIZES = (1, 2, 3, 17, 64)
"""Rows per call. 1 and primes show sizes that the exporter froze; 64 is what the server runs."""

NUM_TIMESTEPS = 50
"""Timesteps that are tried, spread over 0 .. T-1 with both ends; each with every label and null."""

MAX_EPS_DIFFERENCE = 1e-4
"""Largest |difference| of emb and of eps, whose values are of the order of 1."""

MIN_EQUAL_PIXELS = 0.999
"""Share of the pixels of whole trajectories that are within 1/255."""

TRAJECTORIES = (("ddpm", 50), ("dpmpp_2m", 20))
"""Samplers and num_steps of the trajectories, besides the bundle's default."""

IMAGES_PER_LABEL = 2

_EPS_CHECKS = 3 * len(BATCH_SIZES) + 1

_SEED = 20200619


@dataclass(frozen=True)
class Trajectory:
    """A way to draw images with both networks from equal noise."""

    sampler: str
    num_steps: int
    guidance_scale: float = 1.0

    def __str__(self) -> str:
        guidance = "" if self.guidance_scale == 1.0 else f", guidance {self.guidance_scale:g}"
        return f"{self.sampler}, {self.num_steps} steps{guidance}"


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        checks: every figure, in the order of measurement; it ends where going on has no sense.
        timesteps: number of timesteps tried.
        labels: number of labels tried, null among them.
    """

    checks: list[Check] = field(default_factory=list)
    timesteps: int = 0
    labels: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The manifest's section."""
        return {
            "passed": not failed(self.checks),
            "checks": [check.to_dict() for check in self.checks],
            "timesteps": self.timesteps,
            "labels": self.labels,
            "batch_sizes": list(BATCH_SIZES),
            "opset": OPSET,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": ONNXRUNTIME_VERSION,
        }


class VerificationFailed(Exception):
    """The graphs are not the model; the message is one line."""

    def __init__(self, reason: str, verification: Verification) -> None:
        super().__init__(f"verification failed: {reason}")
        self.verification = verification


def verify(
    model: DiffusionModel, schedule: Schedule, graphs: Graphs, default: Trajectory
) -> Verification:
    """Compare graphs with the model that they were exported from.

    Args:
        model: on the CPU, in eval mode.
        schedule: the noise levels it was trained on.
        graphs: what would go into the bundle.
        default: what a request gets that asks for nothing else.

    Raises:
        VerificationFailed: a figure is out of its bounds, or a graph does not run.
    """
    labels = model.config.num_labels + 1
    timesteps = np.unique(np.linspace(0, schedule.num_train_timesteps - 1, NUM_TIMESTEPS).round())
    found = Verification(timesteps=timesteps.size, labels=labels)
    try:
        found.checks.extend(_structure_checks(graphs, model.config))
        _require_passed(found)
        onnx_model = OnnxModel(graphs)
        t, label = (
            axis.ravel() for axis in np.meshgrid(timesteps.astype(np.int64), np.arange(labels))
        )
        trajectories = _trajectories(schedule, default)
        checks = itertools.chain(
            _eps_checks(model, schedule, onnx_model, t, label),
            (_trajectory_check(model, schedule, onnx_model, each) for each in trajectories),
        )
        total = _EPS_CHECKS + len(trajectories)
        for check in tqdm(checks, "verifying", total, unit="check", leave=False, disable=None):
            found.checks.append(check)
    except GraphError as error:
        raise VerificationFailed(str(error), found) from error
    _require_passed(found)
    return found


def torch_network(model: DiffusionModel) -> Network:
    """The PyTorch model as a function of arrays."""

    def network(x_t: Float32Array, t: Int64Array, label: Int64Array) -> Float32Array:
        with torch.inference_mode():
            eps = model(torch.from_numpy(x_t), torch.from_numpy(t), torch.from_numpy(label))
        return cast("Float32Array", eps.numpy())

    return network


def _structure_checks(graphs: Graphs, config: ModelConfig) -> Iterator[Check]:
    number = (TensorProto.INT64, ())
    emb = (TensorProto.FLOAT, (config.condition_width,))
    image = (
        TensorProto.FLOAT,
        (config.image_channels, config.image_size, config.image_size),
    )
    expected: tuple[tuple[str, bytes, Signature, Signature], ...] = (
        ("embedding.onnx", graphs.embedding_onnx, {"t": number, "label": number}, {"emb": emb}),
        ("unet.onnx", graphs.unet_onnx, {"x_t": image, "emb": emb}, {"eps": image}),
    )
    for name, content, inputs, outputs in expected:
        model = onnx.load_from_string(content)
        try:
            check_signature(model, inputs, outputs)
        except GraphError as error:
            raise GraphError(f"{name}: {error}") from error
        yield Check(f"{name}: fixed batch axes", len(fixed_batch_axes(model)), at_most=0)
        yield Check(f"{name}: tensors outside the file", len(external_tensors(model)), at_most=0)


def _eps_checks(
    model: DiffusionModel,
    schedule: Schedule,
    onnx_model: OnnxModel,
    t: Int64Array,
    label: Int64Array,
) -> Iterator[Check]:
    """Each graph, and the two together, on the same rows at every batch size."""
    x_t = _noisy_rows(schedule, model.config, t)
    network = torch_network(model)
    with torch.inference_mode():
        emb = model.embedding(torch.from_numpy(t), torch.from_numpy(label)).numpy()
    eps = _in_batches(network, 64, x_t, t, label)
    alone: Float32Array | None = None
    unequal = 0
    for size in BATCH_SIZES:
        found_emb = _in_batches(onnx_model.embed, size, t, label)
        found_eps = _in_batches(onnx_model.unet, size, x_t, emb)
        found_both = _in_batches(onnx_model, size, x_t, t, label)
        for what, found, reference in (
            ("embedding.onnx: max |emb difference|", found_emb, emb),
            ("unet.onnx: max |eps difference|", found_eps, eps),
            ("both together: max |eps difference|", found_both, eps),
        ):
            difference = float(np.max(np.abs(found - reference)))
            yield Check(f"{what}, batch {size}", difference, at_most=MAX_EPS_DIFFERENCE)
        alone = found_eps if alone is None else alone
        same = found_eps.view(np.uint32) == alone.view(np.uint32)
        unequal += int(np.count_nonzero(~same.reshape(t.size, -1).all(axis=1)))
    # The server promises this on a CPU and tries it on its own at every start.
    yield Check("unet.onnx: rows that depend on the batch size, to the bit", unequal)


def _noisy_rows(schedule: Schedule, config: ModelConfig, t: Int64Array) -> Float32Array:
    """x_t of random images at the noise level of each t: float32 [N, C, H, W]."""
    shape = (t.size, config.image_channels, config.image_size, config.image_size)
    size = int(np.prod(shape[1:]))
    index = np.arange(t.size, dtype=np.int64)
    seed = np.full(t.size, _SEED, dtype=np.uint64)
    x_0, eps = (standard_normal(seed, index, np.full_like(index, step), size) for step in (0, 1))
    alpha, sigma = schedule.alpha[t, None], schedule.sigma[t, None]
    x_t = alpha * np.clip(x_0, -1.0, 1.0) + sigma * eps
    return x_t.astype(np.float32).reshape(shape)


def _in_batches(
    network: Callable[..., Float32Array], size: int, *inputs: npt.NDArray[Any]
) -> Float32Array:
    """All rows in calls of exactly ``size`` rows; the last is filled up with the first rows."""
    rows = len(inputs[0])
    indices = np.arange(-(-rows // size) * size).reshape(-1, size) % rows
    outputs = [network(*(array[batch] for array in inputs)) for batch in indices]
    return np.concatenate(outputs)[:rows]


def _trajectories(schedule: Schedule, default: Trajectory) -> Sequence[Trajectory]:
    longest = schedule.num_train_timesteps
    tried = [Trajectory(sampler, min(steps, longest)) for sampler, steps in TRAJECTORIES]
    return tried if default in tried else [*tried, default]


def _trajectory_check(
    model: DiffusionModel, schedule: Schedule, onnx_model: OnnxModel, trajectory: Trajectory
) -> Check:
    """Draw the same images with both networks; null is drawn too."""
    config = model.config
    labels = np.repeat(np.arange(config.num_labels + 1), IMAGES_PER_LABEL)
    plan = make_plan(trajectory.sampler, schedule, trajectory.num_steps)
    expected, found = (
        to_uint8(
            sample(
                network,
                plan,
                labels,
                _SEED,
                (config.image_channels, config.image_size, config.image_size),
                config.num_labels,
                trajectory.guidance_scale,
            )
        )
        for network in (torch_network(model), onnx_model)
    )
    close = np.abs(expected.astype(np.int16) - found.astype(np.int16)) <= 1
    name = f"images ({trajectory}): share of pixels within 1/255"
    return Check(name, float(close.mean()), at_least=MIN_EQUAL_PIXELS)


def _require_passed(found: Verification) -> None:
    bad = failed(found.checks)
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise VerificationFailed(f"{bad[0].name} is {bad[0].measured:g}{more}", found)
