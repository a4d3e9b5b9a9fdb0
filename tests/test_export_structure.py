"""What a graph must be, and what it costs: on graphs that are checked by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.structure import (
    GraphError,
    check_signature,
    external_tensors,
    fixed_batch_axes,
    multiply_adds,
)

Shape = list[str | int]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Shape],
    outputs: dict[str, Shape],
    weights: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    def infos(shapes: dict[str, Shape]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ]

    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "graph", infos(inputs), infos(outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def identity(before: Shape, after: Shape) -> onnx.ModelProto:
    return model([helper.make_node("Identity", ["x"], ["y"])], {"x": before}, {"y": after})


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_multiply_adds_of_convolutions_are_counted_as_by_hand() -> None:
    nodes = [
        # 3x3, stride 2, padded: [B, 4, 8, 6] -> [B, 10, 4, 3]
        helper.make_node("Conv", ["x", "w"], ["h"], strides=[2, 2], pads=[1, 1, 1, 1]),
        # 1x1 in two groups of five channels -> [B, 6, 4, 3]
        helper.make_node("Conv", ["h", "v"], ["y"], group=2),
    ]
    counted = model(
        nodes,
        {"x": ["batch", 4, 8, 6]},
        {"y": ["batch", 6, 4, 3]},
        {"w": zeros(10, 4, 3, 3), "v": zeros(6, 5, 1, 1)},
    )
    assert multiply_adds(counted) == (10 * 4 * 3) * (4 * 3 * 3) + (6 * 4 * 3) * 5


def test_multiply_adds_of_matrix_products_are_counted_as_by_hand() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], transB=1),  # [B, 12] -> [B, 20]
        helper.make_node("Reshape", ["g", "four_by_five"], ["r"]),  # -> [B, 4, 5]
        helper.make_node("Transpose", ["r"], ["s"], perm=[0, 2, 1]),  # -> [B, 5, 4]
        helper.make_node("MatMul", ["r", "s"], ["m"]),  # -> [B, 4, 4]
        helper.make_node("Mul", ["m", "m"], ["y"]),  # not counted
    ]
    counted = model(
        nodes,
        {"x": ["batch", 12]},
        {"y": ["batch", 4, 4]},
        {"w": zeros(20, 12), "b": zeros(20), "four_by_five": np.array([-1, 4, 5])},
    )
    assert multiply_adds(counted) == 20 * 12 + (4 * 4) * 5


def test_a_transposed_convolution_costs_what_the_convolution_costs() -> None:
    # Three channels to two, each value of x times a kernel of [2, 3, 3].
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    counted = model(
        [node], {"x": ["batch", 3, 6, 5]}, {"y": ["batch", 2, 6, 5]}, {"w": zeros(3, 2, 3, 3)}
    )
    assert multiply_adds(counted) == (3 * 6 * 5) * (2 * 3 * 3)


def test_a_transposed_first_factor_is_counted_by_its_other_axis() -> None:
    gemm = helper.make_node("Gemm", ["a", "x"], ["y"], transA=1)  # [1, 7]^T [1, 3]
    counted = model([gemm], {"x": ["batch", 3]}, {"y": [7, 3]}, {"a": zeros(1, 7)})
    assert multiply_adds(counted) == 7 * 3 * 1


def test_a_product_of_unknown_shape_is_not_counted_as_nothing() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="product"),
    ]
    counted = model(
        nodes,
        {"x": ["batch", 4], "target": ["batch"]},
        {"y": ["batch", 4]},
        {"w": zeros(4, 4)},
    )
    counted.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(GraphError, match="product"):
        multiply_adds(counted)


def test_a_batch_axis_that_is_fixed_or_another_is_found() -> None:
    assert fixed_batch_axes(identity(["batch", 3], ["batch", 3])) == []
    assert fixed_batch_axes(identity([2, 3], ["batch", 3])) == ["x"]
    assert fixed_batch_axes(identity([2, 3], [2, 3])) == ["x", "y"]
    assert fixed_batch_axes(identity(["batch", 3], ["rows", 3])) == ["y"]


def test_a_tensor_in_another_file_is_found_wherever_it_is() -> None:
    add = helper.make_node("Add", ["x", "w"], ["h"])
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(zeros(3)))
    last = helper.make_node("Add", ["h", "c"], ["y"])
    whole = model([add, constant, last], {"x": ["batch", 3]}, {"y": ["batch", 3]}, {"w": zeros(3)})
    assert external_tensors(whole) == []
    for tensor in (whole.graph.initializer[0], whole.graph.node[1].attribute[0].t):
        tensor.name = "outside"
        tensor.data_location = TensorProto.EXTERNAL
        assert external_tensors(whole) == ["outside"]
        tensor.data_location = TensorProto.DEFAULT
        tensor.external_data.add(key="location", value="weights.bin")
        assert external_tensors(whole) == ["outside"]
        tensor.ClearField("external_data")


@pytest.mark.parametrize(
    ("shape", "name", "element_type"),
    [
        ((3,), "z", TensorProto.FLOAT),
        ((4,), "x", TensorProto.FLOAT),
        ((3,), "x", TensorProto.DOUBLE),
        ((3, 1), "x", TensorProto.FLOAT),
        ((), "x", TensorProto.FLOAT),
    ],
)
def test_another_signature_is_refused_by_name(
    shape: tuple[int, ...], name: str, element_type: int
) -> None:
    graph = identity(["batch", 3], ["batch", 3])
    expected = (TensorProto.FLOAT, (3,))
    check_signature(graph, {"x": expected}, {"y": expected})
    with pytest.raises(GraphError, match=f"input.*{name}.*found.*x|input x must be"):
        check_signature(graph, {name: (element_type, shape)}, {"y": expected})
    with pytest.raises(GraphError, match="output"):
        check_signature(graph, {"x": expected}, {name: (element_type, shape)})


def test_a_scalar_has_no_batch() -> None:
    with pytest.raises(GraphError, match="input x"):
        check_signature(identity([], []), {"x": (1, ())}, {"y": (1, ())})
