"""Where the images of a batch lie: memory of the host or of a GPU, and what is done there.

A step graph runs on tensors that never move (serving.step_network). Everything that is done to
them besides is a Device's: HostDevice here, CudaDevice in serving.cuda_device. Both do the same to
the bit, so what is tried on the host holds on the GPU as far as the network does.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from diffusion.noise import INITIAL_STEP, standard_normal

Provider = Literal["cpu", "openvino", "cuda"]
PROVIDER_CHOICES = ("auto", *get_args(Provider))
"""What --provider may be."""

AnyArray = npt.NDArray[Any]

INTEGERS = ("source", "emb_row", "null_row", "seed", "index", "step")
"""Rows of a Control, int64: where the row's x lies among those of the step before, or DRAWN; its
row of the embedding table; the row whose eps guides it; and what its noise is a function of."""

NUMBERS = ("guidance_scale", "alpha", "sigma", "a", "b", "c", "s")
"""Rows of a Control, float32: the numbers of diffusion.update, as inputs of the step graph."""

DRAWN = -1
"""As `source`: there is no step before, x_T is drawn."""

_ALIGNMENT = 64  # columns: every row of a Control starts at a multiple of 256 bytes


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Memory that stays where it is, row-major.

    Attributes:
        pointer: address of the first element.
        memory: what must live as long; on the host, the array.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    memory: Any

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class Control:
    """The few numbers per row that go to the device before a step, as one block.

    Attributes:
        block: int64, what is sent.
        stride: columns; the first `rows` of them are in use.
        integers: int64 [6, stride], a view of the block, the rows of INTEGERS.
        numbers: float32 [7, stride], a view, the rows of NUMBERS.
    """

    def __init__(self, rows: int, block: AnyArray | None = None) -> None:
        """`block` to lie in, at least words(rows) long; None for an own one."""
        self.stride = self.stride_of(rows)
        words = self.words(rows)
        self.block = np.zeros(words, dtype=np.int64) if block is None else block[:words]
        integers = len(INTEGERS) * self.stride
        self.integers = self.block[:integers].reshape(len(INTEGERS), self.stride)
        self.numbers = self.block[integers:].view(np.float32).reshape(len(NUMBERS), self.stride)

    @staticmethod
    def stride_of(rows: int) -> int:
        """Columns of a Control for so many rows."""
        return -(-rows // _ALIGNMENT) * _ALIGNMENT

    @classmethod
    def words(cls, rows: int) -> int:
        """Length of the block for so many rows."""
        return cls.stride_of(rows) * (2 * len(INTEGERS) + len(NUMBERS)) // 2

    def clear(self, first_row: int) -> None:
        """Makes the rows from there on such that a step does no harm in them."""
        self.integers[:, first_row:] = 0
        self.numbers[:, first_row:] = 0.0
        self.numbers[NUMBERS.index("alpha"), first_row:] = 1.0  # what is divided by

    def offset_bytes(self, name: str) -> int:
        """Where a row begins in the block."""
        if name in INTEGERS:
            return INTEGERS.index(name) * self.stride * 8
        return (len(INTEGERS) * 2 + NUMBERS.index(name)) * self.stride * 4


@dataclass(frozen=True, slots=True, eq=False)
class StepTensors:
    """All that a step reads and writes. Rows beyond those of the batch hold whatever they hold.

    Attributes:
        control: int64, a Control's block.
        table: float32 [T * (null_label + 1), E], the embedding of every (t, label).
        x, x_0: float32 [2 * rows, C, H, W]: what the step before left, in the order of its rows;
            the second half is for lanes that are brought from elsewhere.
        x_t, x_0_previous, noise: float32 [rows, C, H, W]; emb: float32 [rows, E]: what `prepare`
            gathers and draws for the graph.
        eps: float32 [rows, C, H, W], checksum: float32 [rows]; besides x and x_0, what it writes.
    """

    control: Tensor
    table: Tensor
    x: Tensor
    x_0: Tensor
    x_t: Tensor
    x_0_previous: Tensor
    noise: Tensor
    emb: Tensor
    eps: Tensor
    checksum: Tensor


class Device(Protocol):
    """Memory, and what is done before the network is called. One thread at a time."""

    @property
    def provider(self) -> Provider:
        """The execution provider whose graphs read this memory."""

    @property
    def stream(self) -> int:
        """Address of the CUDA stream on which all of it happens, in order; 0 without CUDA."""

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """Zeros."""

    def write(self, tensor: Tensor, values: AnyArray, first_row: int = 0) -> None:
        """Copies contiguous values of the tensor's dtype into its rows from first_row on."""

    def read(self, tensor: Tensor, stop: int, start: int = 0) -> AnyArray:
        """A copy of the rows start .. stop - 1, when all that was asked for before is done."""

    def preparation(self, tensors: StepTensors, rows: int) -> Callable[[], None]:
        """What is to be called before every step of a batch of so many rows.

        It gathers x_t, x_0_previous and emb, and draws the noise, as `control` says. The noise of
        rows whose s is 0 is left as it is.
        """


class HostDevice:
    """NumPy."""

    provider: Provider = "cpu"
    stream = 0

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """See Device."""
        array = np.zeros(shape, dtype=dtype)
        return Tensor(array.ctypes.data, shape, array.dtype, array)

    def write(self, tensor: Tensor, values: AnyArray, first_row: int = 0) -> None:
        """See Device."""
        tensor.memory[first_row : first_row + len(values)] = values

    def read(self, tensor: Tensor, stop: int, start: int = 0) -> AnyArray:
        """See Device."""
        copy: AnyArray = tensor.memory[start:stop].copy()
        return copy

    def preparation(self, tensors: StepTensors, rows: int) -> Callable[[], None]:
        """See Device."""
        return functools.partial(_prepare, tensors, Control(rows, tensors.control.memory), rows)


def _prepare(tensors: StepTensors, control: Control, rows: int) -> None:
    """Device.preparation in NumPy."""
    source, emb_row, _, seed, index, step = control.integers[:, :rows]
    noisy = control.numbers[NUMBERS.index("s"), :rows].nonzero()[0]
    drawn = (source < 0).nonzero()[0]
    shape = tensors.x_t.shape[1:]
    normal = functools.partial(standard_normal, size=math.prod(shape))
    seed = seed.view(np.uint64)
    x_t, x_0_previous = tensors.x_t.memory, tensors.x_0_previous.memory
    np.take(tensors.table.memory, emb_row, axis=0, out=tensors.emb.memory[:rows])
    np.take(tensors.x.memory, source, axis=0, out=x_t[:rows], mode="clip")
    np.take(tensors.x_0.memory, source, axis=0, out=x_0_previous[:rows], mode="clip")
    if drawn.size:
        steps = np.full(drawn.size, INITIAL_STEP, dtype=np.int64)
        x_t[drawn] = normal(seed[drawn], index[drawn], steps).reshape(-1, *shape)
        x_0_previous[drawn] = 0.0
    if noisy.size:
        noise = normal(seed[noisy], index[noisy], step[noisy])
        tensors.noise.memory[noisy] = noise.reshape(-1, *shape)
