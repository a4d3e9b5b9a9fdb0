"""The memory of a GPU, and the one kernel that is not in the step graph (prepare.cu).

The kernel gathers and draws noise. It is no part of the graph because ONNX Runtime has no bitwise
operators on CUDA, and Philox is nothing else. NVRTC compiles it when the device is opened.
"""

import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from diffusion.noise import normal_table
from serving.device import AnyArray, Control, Provider, StepTensors, Tensor
from serving.recording import CUDA

_unused: deque[Any] = deque()
"""Memory whose tensors are gone, to be freed by whoever uses a device next."""

_THREADS = 256  # of a block, one block per row: the 196 words of 28x28 pixels at once


class DeviceError(Exception):
    """A call of CUDA failed, or CUDA is not there; the message is one line."""


class CudaDevice:
    """The first GPU that is visible. Its work is done in order, on one stream."""

    provider: Provider = "cuda"

    def __init__(self) -> None:
        """Opens the device and compiles the kernel.

        Raises:
            DeviceError: saying what is missing.
        """
        try:
            from cuda.bindings import driver, nvrtc
        except ImportError as error:
            raise DeviceError(
                "cuda-bindings is missing (install the extra serving-gpu instead of serving)"
            ) from error
        self._driver = driver
        try:
            _call(driver.cuInit(0))
        except RuntimeError as error:  # no libcuda
            raise DeviceError(" ".join(str(error).split())) from error
        device = _call(driver.cuDeviceGet(0))
        # ONNX Runtime's context too. Never released: it is the process's.
        self._context = _call(driver.cuDevicePrimaryCtxRetain(device))
        binary = compile_kernel(nvrtc, self._architecture(device))
        with self._entered():
            # Not the default stream, which is 0, and which ONNX Runtime takes for none.
            flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            self._stream = _call(driver.cuStreamCreate(flags))
            module = _call(driver.cuModuleLoadData(_address(binary)))
            self._kernel = _call(driver.cuModuleGetFunction(module, b"prepare"))
        self.stream = int(self._stream)
        self._normal_table = tuple(self._constant(column) for column in normal_table())

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """See Device.

        Raises:
            DeviceError: if the memory does not suffice.
        """
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        with self._entered():
            memory = _call(self._driver.cuMemAlloc(size))
            tensor = Tensor(int(memory), shape, np.dtype(dtype), _Memory())
            # Not freed there: that may be on any thread, and while somebody records.
            weakref.finalize(tensor.memory, _unused.append, memory)
            _call(self._driver.cuMemsetD8Async(memory, 0, size, self._stream))
        return tensor

    def write(self, tensor: Tensor, values: AnyArray, first_row: int = 0) -> None:
        """See Device."""
        to = tensor.pointer + first_row * tensor.row_bytes
        values = np.ascontiguousarray(values, dtype=tensor.dtype)
        # From pageable memory: the driver has taken the values over when it returns.
        with self._entered():
            _call(self._driver.cuMemcpyHtoDAsync(to, _address(values), values.nbytes, self._stream))

    def read(self, tensor: Tensor, stop: int, start: int = 0) -> AnyArray:
        """See Device."""
        values = np.empty((stop - start, *tensor.shape[1:]), dtype=tensor.dtype)
        at = tensor.pointer + start * tensor.row_bytes
        with self._entered():
            _call(self._driver.cuMemcpyDtoHAsync(_address(values), at, values.nbytes, self._stream))
            _call(self._driver.cuStreamSynchronize(self._stream))
        return values

    def preparation(self, tensors: StepTensors, rows: int) -> Callable[[], None]:
        """See Device."""
        value, slope = self._normal_table
        image_size = tensors.x_t.row_bytes // 4
        arguments: list[AnyArray] = [
            np.array(tensors.control.pointer, dtype=np.uint64),
            *(
                np.array(number, dtype=np.int32)
                for number in (Control.stride_of(rows), image_size, tensors.table.shape[1])
            ),
            *(
                np.array(tensor.pointer, dtype=np.uint64)
                for tensor in (
                    tensors.x, tensors.x_0, tensors.table, value, slope,
                    tensors.x_t, tensors.emb, tensors.x_0_previous, tensors.noise,
                )
            ),
        ]  # fmt: skip
        # As the driver wants them: an array of the addresses of the arguments.
        addresses = np.array([_address(argument) for argument in arguments], dtype=np.uint64)
        # The addresses do not keep what they point at.
        return functools.partial(self._launch, rows, addresses, arguments)

    def _launch(self, rows: int, addresses: AnyArray, _arguments: list[AnyArray]) -> None:
        grid, block = (rows, 1, 1), (_THREADS, 1, 1)
        with self._entered():
            _call(
                self._driver.cuLaunchKernel(
                    self._kernel, *grid, *block, 0, self._stream, _address(addresses), 0
                )
            )

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Makes the context that of the calling thread, once nobody records."""
        with CUDA.use():
            _call(self._driver.cuCtxSetCurrent(self._context))
            while _unused:
                with suppress(IndexError):  # another thread was quicker
                    _call(self._driver.cuMemFree(_unused.popleft()))
            yield

    def _constant(self, values: AnyArray) -> Tensor:
        tensor = self.allocate(values.shape, values.dtype)
        self.write(tensor, values)
        return tensor

    def _architecture(self, device: Any) -> str:
        """As NVRTC calls it: "sm_90"."""
        attribute = self._driver.CUdevice_attribute
        major, minor = (
            _call(self._driver.cuDeviceGetAttribute(which, device))
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        return f"sm_{major}{minor}"


class _Memory:
    """Stands for memory of a device: when it goes, that is freed before the next call."""


@functools.cache
def compile_kernel(nvrtc: Any, architecture: str) -> AnyArray:
    """prepare.cu for an architecture ("sm_90"), as the bytes of a cubin. Needs no device.

    Args:
        nvrtc: the module cuda.bindings.nvrtc.
        architecture: of the device.

    Raises:
        DeviceError: with the compiler's log.
    """
    source = resources.files("serving").joinpath("prepare.cu").read_bytes()
    program = _call(nvrtc.nvrtcCreateProgram(source, b"prepare.cu", 0, [], []))
    options = [f"--gpu-architecture={architecture}".encode(), b"--fmad=false"]
    [failed] = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if failed:
        log = bytearray(_call(nvrtc.nvrtcGetProgramLogSize(program)))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise DeviceError(f"prepare.cu does not compile: {' '.join(log.decode().split())}")
    binary = bytearray(_call(nvrtc.nvrtcGetCUBINSize(program)))
    _call(nvrtc.nvrtcGetCUBIN(program, binary))
    return np.frombuffer(binary, dtype=np.uint8)


def _call(returned: tuple[Any, ...]) -> Any:
    """What a call of the driver gave, if it did not fail."""
    status, *results = returned
    if status:
        raise DeviceError(f"CUDA failed: {status.name}")
    return results[0] if results else None


def _address(array: AnyArray) -> int:
    return int(array.ctypes.data)
