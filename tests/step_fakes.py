"""The fake network as a step graph, and a GPU whose memory and threads are the host's."""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.bundle import Bundle, load_bundle
from serving.engine_model import EngineModel
from tests.fakes import fake_model, tensor, write_tiny_bundle

MODEL: EngineModel = fake_model()


def fake_unet_graph(model: EngineModel = MODEL) -> onnx.ModelProto:
    """tests.fakes.fake_eps as ONNX: gain * x / (1 + |x|) + shift, to the bit."""
    constants = {
        "one": np.array(1.0, dtype=np.float32),
        "axes": np.array([2, 3], dtype=np.int64),
        **{f"column_{i}": np.array([i], dtype=np.int64) for i in (0, 1)},
    }
    nodes = []
    for i, name in enumerate(("shift", "gain")):
        nodes += [
            helper.make_node("Gather", ["emb", f"column_{i}"], [f"{name}_flat"], axis=1),
            helper.make_node("Unsqueeze", [f"{name}_flat", "axes"], [name]),
        ]
    nodes += [
        helper.make_node("Mul", ["gain", "x_t"], ["scaled"]),
        helper.make_node("Abs", ["x_t"], ["absolute"]),
        helper.make_node("Add", ["one", "absolute"], ["bound"]),
        helper.make_node("Div", ["scaled", "bound"], ["quotient"]),
        helper.make_node("Add", ["quotient", "shift"], ["eps"]),
    ]
    image: list[str | int] = ["batch", *model.image_shape]
    graph = helper.make_graph(
        nodes,
        "fake",
        [
            tensor("x_t", TensorProto.FLOAT, image),
            tensor("emb", TensorProto.FLOAT, ["batch", model.embedding_table.shape[2]]),
        ],
        [tensor("eps", TensorProto.FLOAT, image)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def fake_bundle(directory: Path, model: EngineModel = MODEL) -> Bundle:
    """A bundle whose network is the fake one. Its embedding.onnx is another than the model's."""
    path = write_tiny_bundle(
        directory / "fake",
        image_shape=model.image_shape,
        label_names=tuple(f"label {n}" for n in range(model.null_label)),
        num_train_timesteps=model.schedule.num_train_timesteps,
        embedding_width=model.embedding_table.shape[2],
        unet=fake_unet_graph(model),
    )
    return load_bundle(path)


# What prepare.cu needs of CUDA, and a loop over blocks and threads in its place.
_HOST = """
#include <cstring>
#define __global__
#define __device__ static inline
struct Dimension { unsigned int x; };
static Dimension blockIdx, threadIdx, blockDim;
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __uint2float_rn(unsigned int a) { return (float)a; }
static inline unsigned int __float_as_uint(float a) {
  unsigned int bits; std::memcpy(&bits, &a, 4); return bits;
}
static inline float __uint_as_float(unsigned int a) {
  float value; std::memcpy(&value, &a, 4); return value;
}
#include "prepare.cu"
template <class T> static T at(void** arguments, int i) { return *(T*)arguments[i]; }
extern "C" void launch(unsigned int blocks, unsigned int threads, void** a) {
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
      prepare(at<long long*>(a, 0), at<int>(a, 1), at<int>(a, 2), at<int>(a, 3), at<float*>(a, 4),
              at<float*>(a, 5), at<float*>(a, 6), at<float*>(a, 7), at<float*>(a, 8),
              at<float*>(a, 9), at<float*>(a, 10), at<float*>(a, 11), at<float*>(a, 12));
}
"""

COMPILER = shutil.which("g++") or shutil.which("clang++")


def compiled_for_the_host(directory: Path, source: Path) -> ctypes.CDLL:
    """prepare.cu as a library of the host; every operation is rounded by itself, as on the GPU."""
    assert COMPILER
    (directory / "host.cpp").write_text(_HOST)
    library = directory / "prepare.so"
    subprocess.run(
        [COMPILER, "-x", "c++", "-O2", "-ffp-contract=off", "-shared", "-fPIC",
         "-I", str(source.parent), str(directory / "host.cpp"), "-o", str(library)],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(library))


class FakeDriver:
    """The calls of cuda.bindings.driver that serving makes, on memory of the host.

    Attributes:
        allocated: memory that is not freed yet, by address.
        failing: names of calls that fail.
        launches: blocks of every launch.
    """

    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0,
    )

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._handles = itertools.count(100)
        self.allocated: dict[int, Any] = {}
        self.failing: set[str] = set()
        self.launches: list[int] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu") and name in self.failing:
            return lambda *_: (SimpleNamespace(name="CUDA_ERROR_UNKNOWN"), None)
        return super().__getattribute__(name)

    def cuInit(self, flags: int) -> tuple[int]:
        return (0,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:
        return 0, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, str]:
        return 0, "context"

    def cuCtxSetCurrent(self, context: str) -> tuple[int]:
        assert context == "context"
        return (0,)

    def cuStreamCreate(self, flags: int) -> tuple[int, int]:
        assert flags == self.CUstream_flags.CU_STREAM_NON_BLOCKING
        return 0, 4711

    def cuDeviceGetAttribute(self, which: int, device: int) -> tuple[int, int]:
        return 0, which

    def cuModuleLoadData(self, address: int) -> tuple[int, str]:
        assert ctypes.string_at(address, 4) == b"\x7fELF"
        return 0, "module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[int, bytes]:
        assert module == "module"
        return 0, name

    def cuMemAlloc(self, size: int) -> tuple[int, int]:
        memory = ctypes.create_string_buffer(b"\xff" * size, size)
        address = ctypes.addressof(memory)
        self.allocated[address] = memory
        return 0, address

    def cuMemFree(self, address: int) -> tuple[int]:
        del self.allocated[address]
        return (0,)

    def cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> tuple[int]:
        ctypes.memset(address, value, size)
        return (0,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:
        assert stream == 4711
        self._check(to, size)
        ctypes.memmove(to, source, size)
        return (0,)

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:
        assert stream == 4711
        self._check(source, size)
        ctypes.memmove(to, source, size)
        return (0,)

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:
        assert stream == 4711
        return (0,)

    def cuLaunchKernel(
        self, kernel: bytes, *grid_block_shared_stream_arguments_extra: int
    ) -> tuple[int]:
        grid, gy, gz, block, by, bz, shared, stream, arguments, extra = (
            grid_block_shared_stream_arguments_extra
        )
        assert (kernel, gy, gz, by, bz, shared, stream, extra) == (
            b"prepare", 1, 1, 1, 1, 0, 4711, 0,
        )  # fmt: skip
        self.launches.append(grid)
        self._library.launch(ctypes.c_uint(grid), ctypes.c_uint(block), ctypes.c_void_p(arguments))
        return (0,)

    def _check(self, address: int, size: int) -> None:
        assert any(
            start <= address and address + size <= start + len(memory)
            for start, memory in self.allocated.items()
        ), "outside of what was allocated"
