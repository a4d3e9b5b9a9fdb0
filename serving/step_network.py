"""Whole engine steps on a device: network, guidance and update as one graph on fixed memory.

The images stay on the device from their first noise to their last step. To it go a few numbers per
row, from it comes one, and the images and previews that somebody waits for.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving.bundle import Bundle
from serving.cpu_count import usable_cpus
from serving.device import Control, Device, Provider, StepTensors
from serving.lanes import BoolArray, Float32Array
from serving.onnx_session import BoundCall
from serving.step_graph import StepGraph

BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Rows of a batch: each size is a graph of its own. Between two, a batch is padded."""


def buckets_for(rows: int) -> tuple[int, ...]:
    """The buckets for batches of up to `rows`, at least 1."""
    smaller = tuple(bucket for bucket in BUCKETS if bucket < rows)
    return (*smaller, next((bucket for bucket in BUCKETS if bucket >= rows), rows))


class Tenant(Protocol):
    """Whose images lie in the memory of a StepNetwork."""

    def move_out(self) -> None:
        """Takes its images away: somebody else needs the memory."""


@dataclass(frozen=True, slots=True)
class _BoundStep:
    """One bucket: what is done before the graph, and the graph."""

    prepare: Callable[[], None]
    call: BoundCall


class StepNetwork:
    """The step graph of a bundle, and the memory of one batch. One thread at a time.

    It is a Network as well, for those who want eps alone.

    Attributes:
        provider: "cpu" or "cuda", where every node is.
        num_threads: threads of one call on the CPU.
        buckets: the batch sizes that are run.
        lane_counts: those that fit if all lanes take two rows.
    """

    def __init__(
        self, bundle: Bundle, device: Device, num_threads: int | None = None, *, max_rows: int
    ) -> None:
        """Loads the graph and takes the memory.

        Args:
            bundle: checked by load_bundle.
            device: where all of it happens.
            num_threads: for one call on the CPU; None for usable_cpus().
            max_rows: of a batch, at least 1.

        Raises:
            BundleError: if unet.onnx does not load or is not what the manifest says.
            ProviderError: if it would not run on the device.
        """
        self.provider: Provider = device.provider
        self.num_threads = num_threads or usable_cpus()
        self.buckets = buckets_for(max_rows)
        most = self.buckets[-1]
        self.lane_counts = tuple(lanes for lanes in self.buckets if 2 * lanes <= most)
        self._device = device
        # Weak: it has this network, and the two would keep each other and the device's memory.
        self._tenant: weakref.ref[Tenant] | None = None
        manifest = bundle.manifest
        self._graph = StepGraph(bundle, device, self.num_threads)
        image, emb = manifest.image_shape, manifest.embedding_width
        embeddings = manifest.schedule.num_train_timesteps * (manifest.null_label + 1)
        self._tensors = StepTensors(
            control=device.allocate((Control.words(most),), np.int64),
            table=device.allocate((embeddings, emb), np.float32),
            x=device.allocate((2 * most, *image), np.float32),
            x_0=device.allocate((2 * most, *image), np.float32),
            x_t=device.allocate((most, *image), np.float32),
            x_0_previous=device.allocate((most, *image), np.float32),
            noise=device.allocate((most, *image), np.float32),
            emb=device.allocate((most, emb), np.float32),
            eps=device.allocate((most, *image), np.float32),
            checksum=device.allocate((most,), np.float32),
        )
        self._embeddings: Float32Array | None = None
        self._controls = {bucket: Control(bucket) for bucket in self.buckets}
        self._steps: dict[int, _BoundStep] = {}

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        """x_t float32 [B, C, H, W], emb float32 [B, E] -> eps float32 [B, C, H, W], a new array.

        Whoever has images in the memory takes them away first.

        Raises:
            ValueError: if there are more rows than fit.
            Exception: whatever ONNX Runtime or the device raises.
        """
        rows = len(x_t)
        bucket = self.padded_rows(rows)
        self._let(None)
        self._controls[bucket].clear(0)
        self._device.write(self._tensors.x_t, x_t)
        self._device.write(self._tensors.emb, emb)
        self._send(bucket)
        self._bound(bucket).call()
        return self._device.read(self._tensors.eps, rows)

    def padded_rows(self, rows: int) -> int:
        """Rows that are computed for a batch of `rows`.

        Raises:
            ValueError: if they do not fit.
        """
        if rows > self.buckets[-1]:
            raise ValueError(f"a batch has up to {self.buckets[-1]} rows here, got {rows}")
        return next(bucket for bucket in self.buckets if bucket >= rows)

    def claim(self, tenant: Tenant, embedding_table: Float32Array) -> None:
        """Lets `tenant` have the memory, of which there is one, from now on.

        To be called before every step. Whoever had it has taken its images away when this returns.

        Args:
            tenant: who is going to step.
            embedding_table: float32 [T, null_label + 1, E].
        """
        self._let(tenant)
        if embedding_table is not self._embeddings:
            table = self._tensors.table
            self._device.write(table, embedding_table.reshape(table.shape))
            self._embeddings = embedding_table

    def control(self, rows: int) -> Control:
        """Where the numbers of the next step are to be written, for a batch of so many rows."""
        return self._controls[self.padded_rows(rows)]

    def bring(self, x: Float32Array, x_0: Float32Array) -> int:
        """Lays lanes from elsewhere beside those of the step before; returns the first's source.

        Args:
            x: float32 [N, C, H, W].
            x_0: float32 [N, C, H, W], the x_0 of the step before.
        """
        first = self.buckets[-1]
        self._device.write(self._tensors.x, x, first)
        self._device.write(self._tensors.x_0, x_0, first)
        return first

    def step(self, rows: int) -> BoolArray:
        """One step of a batch whose numbers stand in control(rows).

        Returns:
            whether each row's eps, guided, is finite: bool [rows].

        Raises:
            Exception: whatever ONNX Runtime or the device raises.
        """
        bucket = self.padded_rows(rows)
        bound = self._bound(bucket)
        self._send(bucket)
        bound.prepare()
        bound.call()
        checksum = self._device.read(self._tensors.checksum, rows)
        finite: BoolArray = checksum == 0.0
        return finite

    def x(self, stop: int, start: int = 0) -> Float32Array:
        """x of some rows after the last step, float32 [stop - start, C, H, W]."""
        return self._device.read(self._tensors.x, stop, start)

    def x_0(self, rows: int) -> Float32Array:
        """x_0 of the first rows in the last step, float32 [rows, C, H, W]."""
        return self._device.read(self._tensors.x_0, rows)

    def record(self, rows: int) -> None:
        """Calls every graph for up to so many rows: on CUDA, each thread has to record its own."""
        self._let(None)
        for bucket in buckets_for(rows):
            self._controls[bucket].clear(0)
            self._send(bucket)
            self._bound(bucket).call()

    def replay(self, rows: int) -> None:
        """The graph alone, once more after a step of so many rows: the least that one can take."""
        self._bound(self.padded_rows(rows)).call()

    def _send(self, bucket: int) -> None:
        self._device.write(self._tensors.control, self._controls[bucket].block)

    def _let(self, tenant: Tenant | None) -> None:
        before = None if self._tenant is None else self._tenant()
        if before is not tenant:
            if before is not None:
                before.move_out()
            self._tenant = None if tenant is None else weakref.ref(tenant)

    def _bound(self, bucket: int) -> "_BoundStep":
        bound = self._steps.get(bucket)
        if bound is None:
            number = self.buckets.index(bucket) + 1
            call = self._graph.bind(self._tensors, self._controls[bucket], bucket, number)
            prepare = self._device.preparation(self._tensors, bucket)
            bound = self._steps[bucket] = _BoundStep(prepare, call)
        return bound
