"""The arithmetic of an engine step: gather rows, call the network once, advance every lane.

Knows lanes and plans, but no request, queue or clock.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diffusion.noise import INITIAL_STEP, standard_normal
from diffusion.update import advance, guide, predict_x_0
from serving.engine_model import EngineModel, Network
from serving.lane_store import LaneStore
from serving.lanes import BoolArray, Float32Array, Int64Array, LaneTable
from serving.plan_table import PlanTable
from serving.request import GenerateSpec


@dataclass(frozen=True, slots=True)
class Denoised:
    """What one step did to the lanes 0 .. N-1 of the table.

    Args:
        x_0: float32 [N, C, H, W], the estimates. Not meaningful where `nonfinite`, nor where no
            lane has previews.
        finished: bool [N], the lanes whose x is now their image.
        nonfinite: bool [N], the lanes for which the network gave NaN or Inf.
    """

    x_0: Float32Array
    finished: BoolArray
    nonfinite: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """What a step reads that is not in the rows of its lanes.

    Args:
        lanes: N.
        guided: int64 [G], the lanes that have a second row.
        positions: int64 [N].
        finished: bool [N], the lanes that are at their end after it.
        coefficients: float32 [N, 4]; alpha, sigma: float32 [N].
    """

    lanes: int
    guided: Int64Array
    positions: Int64Array
    finished: BoolArray
    coefficients: Float32Array
    alpha: Float32Array
    sigma: Float32Array


class Denoiser:
    """Lanes, their plans, and the buffers of a batch. Not thread-safe.

    With one exception: between prepare() and the end of compute(), that may run on another thread,
    while `lanes.request` and the plan table are free to be changed, and nothing else is.

    Attributes:
        lanes: the lane table; `lanes.leave` is the caller's to call.
        aside: the lanes that were set aside.
        plans: the plan table; a plan is acquired before lanes join with it.
        network_seconds: that the network took in the last step, whether it succeeded or not.
    """

    def __init__(
        self,
        model: EngineModel,
        network: Network,
        max_lanes: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        beside: "Denoiser | None" = None,
    ) -> None:
        """Makes a denoiser without lanes.

        Args:
            model: what the network draws.
            network: the noise predictor.
            max_lanes: images in one batch at most.
            clock: seconds, monotonic.
            beside: another of the same engine, to have its `aside` and `plans` in common with.
        """
        table = np.ascontiguousarray(model.embedding_table)
        self._network = network
        self._clock = clock
        self.network_seconds = 0.0
        self._clip = model.clip
        self._null_label = model.null_label
        self._labels = table.shape[1]
        self._table = table.reshape(-1, table.shape[2])
        self._emb: Float32Array = np.zeros((2 * max_lanes, table.shape[2]), dtype=np.float32)
        self._emb_row: Int64Array = np.zeros(2 * max_lanes, dtype=np.int64)
        self._noise: Float32Array = np.zeros((max_lanes, *model.image_shape), dtype=np.float32)
        self.lanes = LaneTable(max_lanes, model.image_shape, rows=2 * max_lanes)
        self.aside: LaneStore = LaneStore(model.image_shape) if beside is None else beside.aside
        self._image_size = math.prod(model.image_shape)
        self._undrawn: list[slice] = []
        self.plans: PlanTable = PlanTable(model.schedule) if beside is None else beside.plans
        self._batch: _Batch | None = None

    def warm_up(self) -> None:
        """Does what the first steps on a thread would have to do besides; nothing here."""

    def lane_rows(self) -> Int64Array:
        """Network rows of each lane in the next step, int64 [N]: one, or two where it is guided."""
        rows: Int64Array = 1 + self._guided_mask(self._plan_rows()).astype(np.int64)
        return rows

    def join(
        self, spec: GenerateSpec, *, request: int, plan: int, first_index: int, images: int
    ) -> None:
        """Takes lanes for the images first_index .. first_index + images - 1 of a request.

        Their x is drawn by draw_initial, for all that joined at once.
        """
        if not images:
            return
        lanes = self.lanes
        rows = lanes.take(images)
        lanes.seed[rows] = spec.seed
        lanes.index[rows] = np.arange(first_index, first_index + images)
        lanes.num_steps[rows] = spec.num_steps
        lanes.plan[rows] = plan
        lanes.label[rows] = spec.label
        lanes.guidance_scale[rows] = spec.guidance_scale
        lanes.guided[rows] = spec.guided
        lanes.preview_every[rows] = spec.preview_every
        lanes.request[rows] = request
        self._undrawn.append(rows)

    def draw_initial(self) -> None:
        """Draws x_T for the lanes that have joined since the last time."""
        if not self._undrawn:
            return
        lanes = self.lanes
        joined = np.concatenate([np.arange(rows.start, rows.stop) for rows in self._undrawn])
        self._undrawn.clear()
        steps = np.full(joined.size, INITIAL_STEP, dtype=np.int64)
        drawn = standard_normal(lanes.seed[joined], lanes.index[joined], steps, self._image_size)
        lanes.x[joined] = drawn.reshape(-1, *lanes.x.shape[1:])

    def set_aside(self, lanes_of: Int64Array) -> int:
        """Leaves each request `lanes_of` [slots] lanes at most; returns how many are set aside.

        Those that stay are the furthest.
        """
        n = self.lanes.count
        request = self.lanes.request[:n]
        steps_left = self.lanes.num_steps[:n] - self.lanes.position[:n]
        order = np.lexsort((steps_left, request))
        sorted_requests = request[order]
        # The place of each lane among those of its request.
        place = np.arange(n) - np.searchsorted(sorted_requests, sorted_requests)
        which = np.zeros(n, dtype=np.bool_)
        which[order] = place >= lanes_of[sorted_requests]
        self.aside.put(self.lanes, which)
        return int(np.count_nonzero(which))

    def resume(self, request: int, lanes: int) -> int:
        """Takes up to `lanes` lanes of a request that were set aside; returns how many."""
        return self.aside.take(self.lanes, request, lanes) if self.aside.lanes.count else 0

    def step(self) -> Denoised:
        """One step of every lane, with one network call: prepare(), compute().

        Raises:
            Exception: as compute() does.
        """
        self.prepare()
        return self.compute()

    def prepare(self) -> None:
        """Begins a step of every lane: they are at their next position from now on."""
        lanes, n, plans = self.lanes, self.lanes.count, self.plans
        rows = self._plan_rows()
        guided = self._guided_mask(rows).nonzero()[0]
        emb_row = self._emb_row[: n + guided.size]
        np.multiply(plans.timesteps[rows], self._labels, out=emb_row[:n])
        np.add(emb_row[guided], self._null_label, out=emb_row[n:])
        emb_row[:n] += lanes.label[:n]
        positions = lanes.position[:n].copy()
        lanes.position[:n] += 1
        finished: BoolArray = lanes.position[:n] == lanes.num_steps[:n]
        self._batch = _Batch(
            n, guided, positions, finished,
            plans.coefficients[rows], plans.alpha[rows], plans.sigma[rows],
        )  # fmt: skip

    def compute(self, network: Network | None = None) -> Denoised:
        """The rest of the step, on whatever thread.

        Args:
            network: instead of the denoiser's own.

        Raises:
            Exception: whatever the network raises; ValueError if what it returns is not eps. The
                images are then as they were.
        """
        batch = self._batch
        assert batch is not None
        lanes, n, guided = self.lanes, batch.lanes, batch.guided
        eps = self._predict_eps(network or self._network, batch)
        x, x_0_previous = lanes.x[:n], lanes.x_0_previous[:n]
        noise = self._draw_noise(batch)
        # NaN and Inf stay within their lanes and are reported below.
        with np.errstate(invalid="ignore", over="ignore"):
            if guided.size:
                scale = lanes.guidance_scale[guided]
                eps[guided] = guide(eps[guided], eps[n:], scale)
            eps = eps[:n]
            nonfinite = ~_rows_finite(eps)
            x_0 = predict_x_0(x, eps, batch.alpha, batch.sigma, self._clip)
            x[...] = advance(x, x_0, x_0_previous, noise, batch.coefficients)
        x_0_previous[...] = x_0
        return Denoised(x_0, batch.finished, nonfinite)

    def _plan_rows(self) -> Int64Array:
        """Where in the plan table each lane is, int64 [N]."""
        lanes, n = self.lanes, self.lanes.count
        rows: Int64Array = self.plans.first_row[lanes.plan[:n]] + lanes.position[:n]
        return rows

    def _guided_mask(self, plan_rows: Int64Array) -> BoolArray:
        """Whether each lane asks for guidance and its plan is guided here, bool [N]."""
        mask: BoolArray = self.plans.guided[plan_rows]
        mask &= self.lanes.guided[: self.lanes.count]
        return mask

    def _predict_eps(self, network: Network, batch: _Batch) -> Float32Array:
        """eps of the lanes, and behind it that of the null rows of the guided ones."""
        lanes, n = self.lanes, batch.lanes
        rows = n + batch.guided.size
        x, emb = lanes.x[:rows], self._emb[:rows]
        if batch.guided.size:
            np.take(lanes.x, batch.guided, axis=0, out=x[n:], mode="clip")
        # "clip" writes unbuffered
        np.take(self._table, self._emb_row[:rows], axis=0, out=emb, mode="clip")
        begin = self._clock()
        try:
            eps = network(x, emb)
        finally:
            self.network_seconds = self._clock() - begin
        if eps.shape != x.shape or eps.dtype != np.float32:
            raise ValueError(
                f"the network gave {eps.dtype} {list(eps.shape)} for float32 {list(x.shape)}"
            )
        return eps

    def _draw_noise(self, batch: _Batch) -> Float32Array:
        """Noise [N, C, H, W] for the lanes whose plan adds some here.

        For the others, whatever finite numbers are left there: they are multiplied by 0.
        """
        lanes, n = self.lanes, batch.lanes
        noise = self._noise[:n]
        noisy = batch.coefficients[:, 3].nonzero()[0]
        if noisy.size:
            drawn = standard_normal(
                lanes.seed[noisy], lanes.index[noisy], batch.positions[noisy], self._image_size
            ).reshape(-1, *noise.shape[1:])
            if noisy.size == n:
                return drawn
            noise[noisy] = drawn
        return noise


def _rows_finite(images: Float32Array) -> npt.NDArray[np.bool_]:
    """Whether each row holds finite numbers only, bool [N]."""
    flat = images.reshape(len(images), -1)
    finite: npt.NDArray[np.bool_] = np.isfinite(flat.sum(axis=1))
    if not finite.all():  # NaN or Inf, or a sum of finite numbers that overflowed
        suspects = np.flatnonzero(~finite)
        finite[suspects] = np.isfinite(flat[suspects]).all(axis=1)
    return finite
