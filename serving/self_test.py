"""The start-up self-test: does a row's result depend on who shares the batch?

It also is the warm-up: every batch size that it tries has been run once when it is over.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diffusion.noise import standard_normal
from serving.denoiser import Denoiser
from serving.device_denoiser import DeviceDenoiser
from serving.engine import Engine
from serving.engine_model import EngineModel, Network, workers_of
from serving.lanes import Float32Array
from serving.request import GenerateSpec, NullSink, Outcome, Pixels
from serving.step_network import StepNetwork

BATCH_SIZES = (1, 2, 3, 8, 17)
"""Rows per batch that are tried, besides the largest batch that the engine can make."""

_PROBES = 8  # rows of each batch that are also run alone: first, last, and between
_SEED = 20200619


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Rows in a batch of `rows` against the same rows alone."""

    rows: int
    bit_equal: bool
    max_abs_difference: float


@dataclass(frozen=True, slots=True)
class SelfTestReport:
    """What the self-test found.

    Attributes:
        batches: one result per batch size.
        trajectory_equal: whether a request's pixels alone and in a mixed crowd were equal.
        finite: whether every eps was finite.
        seconds: that it took.
        step_difference: the largest between images that the network's device and NumPy drew with
            the same eps; None if NumPy draws them anyway.
    """

    batches: tuple[BatchResult, ...]
    trajectory_equal: bool
    finite: bool
    seconds: float
    step_difference: float | None = None

    @property
    def bit_equal(self) -> bool:
        """Whether same request, same pixels holds, as far as was tried."""
        return self.trajectory_equal and all(batch.bit_equal for batch in self.batches)

    def summary(self) -> str:
        """One line for the log."""
        sizes = ", ".join(str(batch.rows) for batch in self.batches)
        if not self.finite:
            found = "the network gave NaN or Inf"
        elif self.bit_equal:
            found = "rows alone and in a crowd are equal to the bit"
        else:
            worst = max(batch.max_abs_difference for batch in self.batches)
            unequal = [str(batch.rows) for batch in self.batches if not batch.bit_equal]
            pixels = "equal" if self.trajectory_equal else "different"
            found = (
                f"rows alone and in a crowd differ by up to {worst:.3g} in batches of "
                f"{', '.join(unequal) or 'none'}; pixels of a whole trajectory are {pixels}"
            )
        if self.step_difference is not None:
            found += f"; steps on the device and in NumPy differ by {self.step_difference:.3g}"
        return f"self-test at {sizes} rows in {self.seconds:.2f} s: {found}"


def run_self_test(
    model: EngineModel,
    network: Network,
    *,
    max_lanes: int = 64,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> SelfTestReport:
    """Runs rows alone and in batches of several sizes, and a request alone and in a crowd.

    Args:
        model: what the network draws.
        network: the noise predictor.
        max_lanes: as the engine will be made; a batch has up to 2 * max_lanes rows.
        batch_sizes: rows per batch to try, besides 1, max_lanes and 2 * max_lanes.

    Raises:
        Exception: whatever the network raises.
    """
    begin = time.monotonic()
    most = 2 * max_lanes
    sizes = sorted({1, max_lanes, most, *(size for size in batch_sizes if size <= most)})
    x, emb = _rows(model, most)
    alone: dict[int, Float32Array] = {}
    finite = True
    batches = []
    for size in sizes:
        probes = np.unique(np.linspace(0, size - 1, _PROBES).astype(np.int64)).tolist()
        eps = network(x[:size], emb[:size])
        finite = finite and bool(np.isfinite(eps).all())
        crowd = eps[probes]
        for row in probes:
            if row not in alone:
                alone[row] = network(x[row : row + 1], emb[row : row + 1]).copy()
        by_itself = np.concatenate([alone[row] for row in probes])
        batches.append(_compare(size, by_itself, crowd))
    trajectory_equal = _trajectory_equal(model, network, max_lanes)
    difference = None
    worker = workers_of(network)[0]
    if isinstance(worker, StepNetwork):
        difference = _step_difference(model, worker, -(-max_lanes // len(workers_of(network))))
    return SelfTestReport(
        tuple(batches), trajectory_equal, finite, time.monotonic() - begin, difference
    )


def _compare(rows: int, alone: Float32Array, crowd: Float32Array) -> BatchResult:
    equal = bool(np.array_equal(alone.view(np.uint32), crowd.view(np.uint32)))
    difference = 0.0 if equal else float(np.max(np.abs(alone - crowd)))
    return BatchResult(rows, equal, difference)


def _rows(model: EngineModel, rows: int) -> tuple[Float32Array, Float32Array]:
    """Noisy images with embeddings spread over every t and label: x [rows, C, H, W], emb."""
    size = int(np.prod(model.image_shape))
    index = np.arange(rows, dtype=np.int64)
    noise = standard_normal(np.full(rows, _SEED, dtype=np.uint64), index, index, size)
    t = np.linspace(model.schedule.num_train_timesteps - 1, 0, rows).astype(np.int64)
    emb = model.embedding_table[t, index % (model.null_label + 1)]
    return noise.reshape(rows, *model.image_shape), np.ascontiguousarray(emb)


@dataclass(slots=True)
class _Album(NullSink):
    """A sink that keeps the images."""

    images: dict[int, Pixels] = field(default_factory=dict)
    outcome: Outcome | None = None

    def image(self, index: int, pixels: Pixels) -> None:
        self.images[index] = pixels

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        self.outcome = outcome


def _trajectory_equal(model: EngineModel, network: Network, max_lanes: int) -> bool:
    """Whether a short request draws the same pixels alone and among others."""
    num_steps = min(4, model.schedule.num_train_timesteps)
    request = GenerateSpec(
        label=0, count=2, first_index=0, seed=_SEED, sampler="ddpm", num_steps=num_steps,
        guidance_scale=1.0,
    )  # fmt: skip
    others = _mixed_specs(model, num_steps)
    alone = _draw(model, network, max_lanes, request, [])
    crowd = _draw(model, network, max_lanes, request, others)
    return (
        alone.outcome is crowd.outcome is Outcome.FINISHED
        and alone.images.keys() == crowd.images.keys()
        and all(np.array_equal(alone.images[i], crowd.images[i]) for i in alone.images)
    )


def _mixed_specs(model: EngineModel, num_steps: int) -> list[GenerateSpec]:
    """Requests of every kind, of up to `num_steps` steps."""
    return [
        GenerateSpec(
            label=number % (model.null_label + 1), count=1 + number, first_index=number,
            seed=number, sampler=sampler, num_steps=min(2 + number, num_steps),
            guidance_scale=scale,
        )
        for number, (sampler, scale) in enumerate(
            [("ddim", 1.0), ("dpmpp_2m", 3.0), ("ddpm", 0.0), ("ddim", 1.5)]
        )
    ]  # fmt: skip


def _step_difference(model: EngineModel, network: StepNetwork, max_lanes: int) -> float:
    """The largest difference between x_0 as the device draws it and as NumPy does: NaN is large."""
    specs = _mixed_specs(model, min(4, model.schedule.num_train_timesteps))[:max_lanes]
    drawn = []
    for kind in (Denoiser, DeviceDenoiser):
        denoiser = kind(model, network, max_lanes)
        for slot, spec in enumerate(specs):
            plan = denoiser.plans.acquire(spec.sampler, spec.num_steps)
            denoiser.join(spec, request=slot, plan=plan, first_index=0, images=1)
        denoiser.draw_initial()
        drawn.append(_images(denoiser))
    difference = np.abs(drawn[0] - drawn[1]).max()
    return float(np.nan_to_num(difference, nan=np.inf))


def _images(denoiser: Denoiser) -> Float32Array:
    """Steps all lanes to their end: float32 [lanes, C, H, W], in the order of their requests."""
    images: dict[int, Float32Array] = {}
    lanes = denoiser.lanes
    while lanes.count:
        finished = denoiser.step().finished
        for lane in finished.nonzero()[0]:
            images[int(lanes.request[lane])] = lanes.x[lane].copy()
        lanes.leave(finished)
    return np.stack([images[slot] for slot in sorted(images)])


def _draw(
    model: EngineModel,
    network: Network,
    max_lanes: int,
    request: GenerateSpec,
    others: Sequence[GenerateSpec],
) -> _Album:
    engine = Engine(model, network, max_lanes=max_lanes)
    for other in others[: len(others) // 2]:
        engine.submit(other, _Album())
    album = _Album()
    engine.submit(request, album)
    for other in others[len(others) // 2 :]:
        engine.submit(other, _Album())
    while engine.has_work:
        engine.step()
    return album
