"""The lanes: every image being denoised, as a structure of arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class LaneTable:
    """Up to `capacity` lanes, always packed into the rows 0 .. count-1 of every array.

    Packed, so that the images are a batch as they lie: x[:count] goes to the network without a
    copy. Lanes move when others leave; nothing outside keeps a lane's number across engine steps.
    A lane is a row of each array and nothing else, so that it can be set aside in another table
    and go on from there later.

    Attributes:
        capacity: lanes that there is room for.
        count: lanes in use.
        x: float32 [rows, C, H, W]; rows from `count` on are the engine's to fill with the second
            rows of guided lanes, right behind the first.
        x_0_previous: float32 [capacity, C, H, W], the x_0 of the step before; 0 at the first.
        seed: uint64 [capacity].
        index: int64 [capacity], the image's index in its request.
        position: int64 [capacity], steps done, 0 .. num_steps - 1.
        num_steps: int64 [capacity].
        plan: int64 [capacity], a PlanTable handle.
        label: int64 [capacity].
        guidance_scale: float32 [capacity].
        guided: bool [capacity], whether the lane takes a second row where its plan is guided.
        preview_every: int64 [capacity], 0 for no previews.
        request: int64 [capacity], the request's slot.
        rows_computed: int64 [capacity], network rows that the image has taken so far; 0 once it is
            handed over.
        device_row: int64 [capacity], for a denoiser that keeps the images elsewhere.
        arrays: all of these.
    """

    def __init__(
        self, capacity: int, image_shape: tuple[int, ...], *, rows: int | None = None
    ) -> None:
        """`rows` of x, at least `capacity`; None for as many."""
        self.capacity = capacity
        self.count = 0
        rows = capacity if rows is None else rows
        self.x: Float32Array = np.zeros((rows, *image_shape), dtype=np.float32)
        self.x_0_previous: Float32Array = np.zeros((capacity, *image_shape), dtype=np.float32)
        self.seed: UInt64Array = np.zeros(capacity, dtype=np.uint64)
        self.index: Int64Array = np.zeros(capacity, dtype=np.int64)
        self.position: Int64Array = np.zeros(capacity, dtype=np.int64)
        self.num_steps: Int64Array = np.zeros(capacity, dtype=np.int64)
        self.plan: Int64Array = np.zeros(capacity, dtype=np.int64)
        self.label: Int64Array = np.zeros(capacity, dtype=np.int64)
        self.guidance_scale: Float32Array = np.zeros(capacity, dtype=np.float32)
        self.guided: BoolArray = np.zeros(capacity, dtype=np.bool_)
        self.preview_every: Int64Array = np.zeros(capacity, dtype=np.int64)
        self.request: Int64Array = np.zeros(capacity, dtype=np.int64)
        self.rows_computed: Int64Array = np.zeros(capacity, dtype=np.int64)
        self.device_row: Int64Array = np.zeros(capacity, dtype=np.int64)
        self.arrays: tuple[npt.NDArray[Any], ...] = (
            self.x, self.x_0_previous, self.seed, self.index, self.position, self.num_steps,
            self.plan, self.label, self.guidance_scale, self.guided, self.preview_every,
            self.request, self.rows_computed, self.device_row,
        )  # fmt: skip

    @property
    def free(self) -> int:
        """Lanes not in use."""
        return self.capacity - self.count

    def take(self, lanes: int) -> slice:
        """Takes so many lanes and returns their rows, for the caller to fill (x too).

        position, rows_computed and x_0_previous are 0 in them.

        Raises:
            ValueError: if fewer are free.
        """
        rows = self._grow(lanes)
        self.position[rows] = 0
        self.rows_computed[rows] = 0
        self.x_0_previous[rows] = 0.0  # what a lane before left there may be NaN, and 0 * NaN is
        return rows

    def receive(self, other: "LaneTable", lanes: Int64Array) -> None:
        """Takes as many lanes and copies into them those of another table, whole.

        Raises:
            ValueError: if fewer are free.
        """
        rows = self._grow(lanes.size)
        for mine, theirs in zip(self.arrays, other.arrays, strict=True):
            np.take(theirs, lanes, axis=0, out=mine[rows], mode="clip")  # "clip" writes unbuffered

    def leave(self, leaving: BoolArray) -> int:
        """Frees the lanes marked in `leaving` [count] and packs the rest, moving few.

        Returns:
            the sum of rows_computed of those that left.
        """
        rows_computed = int(self.rows_computed[: self.count] @ leaving)
        staying = ~leaving
        count = int(np.count_nonzero(staying))
        holes = leaving[:count].nonzero()[0]
        if holes.size:
            movers = np.flatnonzero(staying[count:]) + count
            for array in self.arrays:
                array[holes] = array[movers]
        self.count = count
        return rows_computed

    def _grow(self, lanes: int) -> slice:
        if lanes > self.free:
            raise ValueError(f"{lanes} lanes asked for, {self.free} free")
        rows = slice(self.count, self.count + lanes)
        self.count = rows.stop
        return rows
