"""The engine step where the images stay on a device (serving.step_network)."""

import time
from collections.abc import Callable

import numpy as np

from serving.denoiser import Denoised, Denoiser
from serving.device import DRAWN
from serving.engine_model import EngineModel, Network
from serving.lanes import Int64Array
from serving.step_network import StepNetwork

_HERE = -2
"""As a lane's device_row: x and x_0_previous stand in the lane table, to be brought."""


class DeviceDenoiser(Denoiser):
    """Steps lanes whose images the lane table holds only when somebody asks for them.

    It does to the bit what Denoiser does: in x of lanes that are at their end, in x_0_previous
    while any lane has previews, and in both when lanes are set aside.
    """

    def __init__(
        self,
        model: EngineModel,
        network: StepNetwork,
        max_lanes: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        beside: Denoiser | None = None,
    ) -> None:
        """Makes a denoiser without lanes. See Denoiser.

        Raises:
            ValueError: if the step graph does not suit the model or the batch does not fit.
        """
        if model.clip != 1.0:
            raise ValueError(f"the step graph clips x_0 at 1, the model at {model.clip}")
        network.padded_rows(2 * max_lanes)  # fits, or raises
        super().__init__(model, network, max_lanes, clock, beside=beside)
        self._device_network = network
        self._embedding_table = model.embedding_table
        self._rows = 0  # of the batch that was prepared

    def warm_up(self) -> None:
        """See Denoiser."""
        self._device_network.record(2 * self.lanes.capacity)

    def draw_initial(self) -> None:
        """Leaves it to the next step to draw x_T of the lanes that have joined."""
        for rows in self._undrawn:
            self.lanes.device_row[rows] = DRAWN
        self._undrawn.clear()

    def set_aside(self, lanes_of: Int64Array) -> int:
        """See Denoiser."""
        self.move_out()
        return super().set_aside(lanes_of)

    def move_out(self) -> None:
        """Fetches the images of all lanes into the lane table."""
        lanes, n = self.lanes, self.lanes.count
        there = (lanes.device_row[:n] >= 0).nonzero()[0]
        if there.size:
            rows = lanes.device_row[there]
            held = int(rows.max()) + 1
            lanes.x[there] = self._device_network.x(held)[rows]
            lanes.x_0_previous[there] = self._device_network.x_0(held)[rows]
            lanes.device_row[there] = _HERE

    def prepare(self) -> None:
        """See Denoiser."""
        lanes, n = self.lanes, self.lanes.count
        self._device_network.claim(self, self._embedding_table)
        plan_rows = self._plan_rows()
        guided = self._guided_mask(plan_rows).nonzero()[0]
        self._rows = n + guided.size
        self._write_control(plan_rows, guided)
        lanes.position[:n] += 1

    def compute(self, network: Network | None = None) -> Denoised:
        """See Denoiser. It knows no other network than its own."""
        lanes, n = self.lanes, self.lanes.count
        begin = self._clock()
        try:
            finite = self._device_network.step(self._rows)
        finally:
            self.network_seconds = self._clock() - begin
        lanes.device_row[:n] = np.arange(n)
        finished = lanes.position[:n] == lanes.num_steps[:n]
        ends = finished.nonzero()[0]
        if ends.size:
            rows = slice(int(ends[0]), int(ends[-1]) + 1)
            lanes.x[rows] = self._device_network.x(rows.stop, rows.start)
        if lanes.preview_every[:n].any():
            lanes.x_0_previous[:n] = self._device_network.x_0(n)
        return Denoised(lanes.x_0_previous[:n], finished, ~finite[:n])

    def _write_control(self, plan_rows: Int64Array, guided: Int64Array) -> None:
        """Lanes first, then the null rows of the guided ones, then what fills the bucket."""
        lanes, plans, n = self.lanes, self.plans, self.lanes.count
        rows = n + guided.size
        control = self._device_network.control(rows)
        control.clear(n)
        source, emb_row, null_row, seed, index, step = control.integers
        scale, alpha, sigma, *coefficients = control.numbers
        source[:n] = self._sources()
        emb_row[:n] = plans.timesteps[plan_rows] * self._labels
        null_row[:rows] = np.arange(rows)
        seed[:n] = lanes.seed[:n].view(np.int64)
        index[:n], step[:n] = lanes.index[:n], lanes.position[:n]
        if guided.size:
            emb_row[n:rows] = emb_row[guided] + self._null_label
            null_row[guided] = null_row[n:rows]
            for row in (source, seed, index, step):
                row[n:rows] = row[guided]
        emb_row[:n] += lanes.label[:n]
        scale[:n] = lanes.guidance_scale[:n]
        alpha[:n], sigma[:n] = plans.alpha[plan_rows], plans.sigma[plan_rows]
        for column, row in enumerate(coefficients):
            row[:n] = plans.coefficients[plan_rows, column]

    def _sources(self) -> Int64Array:
        """Where each lane's x is, int64 [N]; those that are not on the device are brought."""
        lanes, n = self.lanes, self.lanes.count
        sources = lanes.device_row[:n].copy()
        here = (sources == _HERE).nonzero()[0]
        if here.size:
            first = self._device_network.bring(lanes.x[here], lanes.x_0_previous[here])
            sources[here] = np.arange(first, first + here.size)
        return sources


def make_denoiser(
    model: EngineModel,
    network: Network,
    max_lanes: int,
    clock: Callable[[], float] = time.monotonic,
    *,
    worker: Network | None = None,
    beside: Denoiser | None = None,
) -> Denoiser:
    """The denoiser that suits a network: on its device, if it steps on one. See Denoiser.

    Its lanes are those of `worker`, one of the network's; None for the only one.
    """
    device_network = network if worker is None else worker
    if isinstance(device_network, StepNetwork):
        return DeviceDenoiser(model, device_network, max_lanes, clock, beside=beside)
    return Denoiser(model, network, max_lanes, clock, beside=beside)
