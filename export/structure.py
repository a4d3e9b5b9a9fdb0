"""What a graph must be before a number is computed with it, and what it costs."""

import math
from collections.abc import Iterator

import onnx
from onnx import TensorProto

BATCH_AXIS = "batch"
"""Name of the one axis that is not fixed; the first of every input and output."""

Signature = dict[str, tuple[int, tuple[int, ...]]]
"""Of tensors, by name: element type (onnx.TensorProto), and sizes of all axes but the batch."""


class GraphError(Exception):
    """A graph that is not what a bundle promises; the message is one line."""


def check_signature(model: onnx.ModelProto, inputs: Signature, outputs: Signature) -> None:
    """Compare names, element types and sizes of all axes but the first.

    Raises:
        GraphError: names the input or output.
    """
    for kind, expected, found in (
        ("input", inputs, model.graph.input),
        ("output", outputs, model.graph.output),
    ):
        names = [info.name for info in found]
        if names != list(expected):
            raise GraphError(f"{kind}s must be {', '.join(expected)}, found {', '.join(names)}")
        for info in found:
            tensor = info.type.tensor_type
            sizes = tuple(dim.dim_value for dim in tensor.shape.dim[1:])
            fits = (tensor.elem_type, sizes) == expected[info.name] and len(tensor.shape.dim) > 0
            if not fits:
                raise GraphError(
                    f"{kind} {info.name} must be {_show(*expected[info.name])}, "
                    f"found {_show(tensor.elem_type, sizes)}"
                )


def fixed_batch_axes(model: onnx.ModelProto) -> list[str]:
    """Names of inputs and outputs whose first axis is not the symbol BATCH_AXIS."""
    return [
        info.name
        for info in (*model.graph.input, *model.graph.output)
        if info.type.tensor_type.shape.dim[0].dim_param != BATCH_AXIS
    ]


def external_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of tensors that are kept in another file."""
    return [
        tensor.name
        for tensor in _tensors(model.graph)
        if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL
    ]


def multiply_adds(model: onnx.ModelProto) -> int:
    """Multiply-adds of one row (batch 1): those of Conv, ConvTranspose, Gemm and MatMul.

    What else there is (normalisation, activation, softmax) is left out, as is usual.

    Raises:
        GraphError: a shape that it takes is not known.
    """
    single = onnx.ModelProto()
    single.CopyFrom(model)
    # What the file says of shapes has an open batch in it; all of it is inferred anew.
    del single.graph.value_info[:], single.graph.output[:]
    for info in single.graph.input:
        info.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    shapes = {
        info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        for info in (*inferred.input, *inferred.value_info)
    }
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    return sum(_node_multiply_adds(node, shapes) for node in inferred.node)


def _node_multiply_adds(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    first, second, out = (shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    if not first or not second or not out or 0 in first + second + out:
        raise GraphError(f"cannot count the multiply-adds of {node.name}: its shapes are not known")
    if node.op_type == "Conv":
        # Weight [C_out, C_in / groups, *kernel]: each output value is one sum over the rest.
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        # Weight [C_in, C_out / groups, *kernel]: each input value is multiplied by all of its own.
        return math.prod(first) * math.prod(second[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(out) * first[0 if transposed else -1]


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _tensors(subgraph)


def _show(element_type: int, sizes: tuple[int, ...]) -> str:
    name = TensorProto.DataType.Name(element_type).lower()
    return f"{name} [{', '.join(['batch', *map(str, sizes)])}]"
