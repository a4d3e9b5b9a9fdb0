"""The machine's fp32 peak, as far as a library reaches it: matrix product and convolution."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper

SIZE = 1536
"""Rows and columns of the matrices."""

CHANNELS, SIDE, IMAGES = 128, 28, 8
"""Of the 3x3 convolution."""

FLOP_PER_MULTIPLY_ADD = 2


def matmul_flop() -> int:
    """FLOP of the matrix product."""
    return FLOP_PER_MULTIPLY_ADD * SIZE**3


def convolution_flop() -> int:
    """FLOP of the convolution, border included."""
    return FLOP_PER_MULTIPLY_ADD * IMAGES * SIDE**2 * CHANNELS**2 * 9


def candidates(num_threads: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """(FLOP of one call, the call) of each library's matrix product and convolution.

    Args:
        num_threads: of PyTorch and ONNX Runtime. NumPy's come from its BLAS.
    """
    torch.set_num_threads(num_threads)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, SIZE, SIZE), dtype=np.float32)
    image = rng.standard_normal((IMAGES, CHANNELS, SIDE, SIDE), dtype=np.float32)
    weight = rng.standard_normal((CHANNELS, CHANNELS, 3, 3), dtype=np.float32)
    torch_a, torch_b = torch.from_numpy(a), torch.from_numpy(b)
    convolution = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
    convolution.weight.data = torch.from_numpy(weight)
    convolution.to(memory_format=torch.channels_last)
    torch_image = torch.from_numpy(image).to(memory_format=torch.channels_last)
    onnx_matmul = _session("MatMul", {"a": a, "b": b}, num_threads)
    onnx_conv = _session("Conv", {"a": image, "b": weight}, num_threads)

    def in_torch(call: Callable[[], object]) -> Callable[[], object]:
        def inferred() -> object:
            with torch.inference_mode():
                return call()

        return inferred

    return {
        "matrix product, NumPy": (matmul_flop(), lambda: a @ b),
        "matrix product, PyTorch": (matmul_flop(), in_torch(lambda: torch_a @ torch_b)),
        "matrix product, ONNX Runtime": (matmul_flop(), lambda: onnx_matmul.run(None, {"a": a})),
        "convolution, NumPy": (convolution_flop(), lambda: numpy_convolution(image, weight)),
        "convolution, PyTorch": (convolution_flop(), in_torch(lambda: convolution(torch_image))),
        "convolution, ONNX Runtime": (
            convolution_flop(),
            lambda: onnx_conv.run(None, {"a": image}),
        ),
    }


def numpy_convolution(
    image: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A 3x3 convolution with a border of zeros, as a matrix product of windows."""
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))  # [N, C, H, W, 3, 3]
    product = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3)))  # [N, H, W, C_out]
    return product.transpose(0, 3, 1, 2)


def fastest_seconds(call: Callable[[], object], budget_seconds: float) -> float:
    """Of the fastest of the calls that fit into a time; at least three."""
    call()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < budget_seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _session(
    operator: str,
    inputs: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]],
    num_threads: int,
) -> onnxruntime.InferenceSession:
    """One operator of `a` and, as a constant, `b`."""
    a, b = inputs["a"], inputs["b"]
    attributes: dict[str, Any] = {"pads": [1, 1, 1, 1]} if operator == "Conv" else {}
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["y"], **attributes)],
        operator,
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, a.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
