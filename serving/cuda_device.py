"""The memory of a GPU, and the one kernel that is not in the step graph (prepare.cu).

The kernel gathers and draws noise. It is no part of the graph because ONNX Runtime has no bitwise
operators on CUDA, and Philox is nothing else. NVRTC compiles it when the device is opened.
"""

import functools
import threading
import weakref
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from diffusion.noise import normal_table
from serving.device import AnyArray, Control, Provider, StepTensors, Tensor

_thread = threading.local()

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
        self._enter()
        # Not the default stream, which is 0, and which ONNX Runtime takes for none.
        self._stream = _call(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.stream = int(self._stream)
        attribute = driver.CUdevice_attribute
        major, minor = (
            _call(driver.cuDeviceGetAttribute(which, device))
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self._binary = compile_kernel(nvrtc, f"sm_{major}{minor}")
        module = _call(driver.cuModuleLoadData(_address(self._binary)))
        self._kernel = _call(driver.cuModuleGetFunction(module, b"prepare"))
        self._normal_table = tuple(self._constant(column) for column in normal_table())

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """See Device.

        Raises:
            DeviceError: if the memory does not suffice.
        """
        self._enter()
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        memory = _call(self._driver.cuMemAlloc(size))
        tensor = Tensor(int(memory), shape, np.dtype(dtype), _Memory())
        weakref.finalize(tensor.memory, self._free, memory)
        _call(self._driver.cuMemsetD8Async(memory, 0, size, self._stream))
        return tensor

    def write(self, tensor: Tensor, values: AnyArray, first_row: int = 0) -> None:
        """See Device."""
        self._enter()
        to = tensor.pointer + first_row * tensor.row_bytes
        values = np.ascontiguousarray(values, dtype=tensor.dtype)
        # From pageable memory: the driver has taken the values over when it returns.
        _call(self._driver.cuMemcpyHtoDAsync(to, _address(values), values.nbytes, self._stream))

    def read(self, tensor: Tensor, stop: int, start: int = 0) -> AnyArray:
        """See Device."""
        self._enter()
        values = np.empty((stop - start, *tensor.shape[1:]), dtype=tensor.dtype)
        at = tensor.pointer + start * tensor.row_bytes
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
        self._enter()
        grid, block = (rows, 1, 1), (_THREADS, 1, 1)
        _call(
            self._driver.cuLaunchKernel(
                self._kernel, *grid, *block, 0, self._stream, _address(addresses), 0
            )
        )

    def _enter(self) -> None:
        """Makes the context that of the calling thread, which may work while others record."""
        _call(self._driver.cuCtxSetCurrent(self._context))
        if not getattr(_thread, "is_relaxed", False):
            # ONNX Runtime records a CUDA graph such that meanwhile other threads may not do what
            # could disturb it, as they do nothing of, but for this.
            mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
            _call(self._driver.cuThreadExchangeStreamCaptureMode(mode))
            _thread.is_relaxed = True

    def _constant(self, values: AnyArray) -> Tensor:
        tensor = self.allocate(values.shape, values.dtype)
        self.write(tensor, values)
        return tensor

    def _free(self, memory: Any) -> None:
        # Not checked: at the end of the process the context is gone before the memory.
        self._driver.cuCtxSetCurrent(self._context)
        self._driver.cuMemFree(memory)


class _Memory:
    """Stands for memory of a device: when it goes, that is freed."""


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
