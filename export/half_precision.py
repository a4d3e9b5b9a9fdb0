"""A bundle whose U-Net computes in half precision (float16), for GPUs, as a bundle of its own.

`python -m export.half_precision --model models/mnist --output models/mnist-fp16`

Inputs and output stay in float32, and so do the last operations, which combine x_t with what the
network says, eps = a x_t + b h: while x_t is nearly all noise, rounding it and the sum would double
the error. Processors compute what is in float16 in float32, and gain nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import compose, helper, numpy_helper
from onnx.utils import Extractor
from onnxruntime.transformers.float16 import convert_float_to_float16

from export.precision import Precision, command
from export.structure import GraphError
from serving.bundle import Bundle

_COMBINING = frozenset({"Add", "Mul", "Gather", "Slice", "Split", "Squeeze", "Unsqueeze"})


def layer_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """InstanceNormalization over [B, groups, n] as LayerNormalization over n: the same function.

    In float16 ONNX Runtime on CUDA computes the first wrongly, and in float32 it takes three
    kernels for it in place of one.

    Args:
        model: is not changed.

    Raises:
        GraphError: a normalisation has weights, or is not one of rows of a known size.
    """
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    shapes = {info.name: info.type.tensor_type.shape.dim for info in graph.value_info}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "InstanceNormalization":
            continue
        rows, scale, shift = node.input
        sizes = [dim.dim_value for dim in shapes.get(rows, ())]
        plain = all(
            name in constants and np.all(numpy_helper.to_array(constants[name]) == value)
            for name, value in ((scale, 1), (shift, 0))
        )
        if not plain or len(sizes) != 3 or not sizes[2]:
            raise GraphError(f"{node.name} cannot be written as a LayerNormalization")
        ones = f"ones_{sizes[2]}"
        if ones not in constants:
            constants[ones] = numpy_helper.from_array(np.ones(sizes[2], np.float32), ones)
            graph.initializer.append(constants[ones])
        epsilon = [each for each in node.attribute if each.name == "epsilon"]
        node.CopyFrom(
            helper.make_node("LayerNormalization", [rows, ones], node.output, node.name, axis=-1)
        )
        node.attribute.extend(epsilon)
    return model


def with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """LayerNormalizations with the weights that a BatchNormalization behind them has: a pass less.

    Where rows are groups of channels, [B, groups, n], the weights of a group are those of its rows:
    [1, groups, n].

    Args:
        model: with inferred shapes, is not changed.
    """
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    shapes = {info.name: info.type.tensor_type.shape.dim for info in graph.value_info}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for norm in [node for node in graph.node if node.op_type == "LayerNormalization"]:
        behind = _only(readers, norm, "Reshape")
        weights = None if behind is None else _only(readers, behind, "BatchNormalization")
        if behind is None or weights is None or not _only_scales(weights, constants):
            continue
        _, groups, size = (dim.dim_value for dim in shapes[norm.input[0]])
        for name in weights.input[1:3]:
            rows = constants[name].repeat(groups * size // constants[name].size)
            graph.initializer.append(
                numpy_helper.from_array(rows.reshape(1, groups, size), f"{name}.rows")
            )
        norm.input[1:] = [f"{name}.rows" for name in weights.input[1:3]]
        behind.output[0] = weights.output[0]
        graph.node.remove(weights)
    used = {name for node in graph.node for name in node.input}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)
    del graph.value_info[:]  # of what there was
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _only(
    readers: Mapping[str, Sequence[onnx.NodeProto]], node: onnx.NodeProto, operator: str
) -> onnx.NodeProto | None:
    """Who reads what a node makes, if that is one node of this kind."""
    found = readers.get(node.output[0], ())
    return found[0] if len(found) == 1 and found[0].op_type == operator else None


def _only_scales(node: onnx.NodeProto, constants: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether a BatchNormalization normalises nothing: mean 0, variance 1, no epsilon."""
    _, scale, shift, mean, variance = node.input
    if not {scale, shift, mean, variance} <= constants.keys():
        return False
    epsilon = sum(each.f for each in node.attribute if each.name == "epsilon")
    return not epsilon and not constants[mean].any() and bool((constants[variance] == 1).all())


def in_half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Everything in float16 but inputs, output, and the operations that combine them.

    Args:
        model: is not changed.

    Raises:
        GraphError: see layer_norms.
    """
    model = with_weights(layer_norms(model))
    inputs, outputs = (
        [info.name for info in infos] for infos in (model.graph.input, model.graph.output)
    )
    said = _said_by_the_network(model.graph)
    network = _halved(_part(model, inputs, said))
    # Constants that both parts read are in both: float16 in one, float32 in the other.
    last = compose.add_prefix(
        _part(model, [*inputs, *said], outputs), "last.", rename_inputs=False, rename_outputs=False
    )
    for field in ("node", "initializer", "value_info"):
        model.graph.ClearField(field)
        for part in (network, last):
            getattr(model.graph, field).extend(getattr(part.graph, field))
    onnx.checker.check_model(model, full_check=True)
    return model


def _halved_unet(bundle: Bundle) -> bytes:
    halved = in_half_precision(onnx.load_from_string(bundle.unet_onnx))
    return halved.SerializeToString(deterministic=True)


def _said_by_the_network(graph: onnx.GraphProto) -> list[str]:
    """Tensors that are only combined with the inputs from there on; eps itself if none is."""
    made_by = {name: node for node in graph.node for name in node.output}
    said, unseen = [], [info.name for info in graph.output]
    while unseen:
        name = unseen.pop()
        node = made_by.get(name)
        if node is not None and node.op_type in _COMBINING:
            unseen.extend(node.input)
        elif node is not None and name not in said:
            said.append(name)
    return said


def _part(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """What computes some tensors from others, with the shapes of what lies between them.

    Not those of constants: for them the converter would cast Resize's scales back and forth.
    """
    part = Extractor(model).extract_model(list(inputs), list(outputs))
    graph = part.graph
    declared = {info.name for info in (*graph.input, *graph.output)}
    declared.update(tensor.name for tensor in graph.initializer)
    between = [info for info in graph.value_info if info.name not in declared]
    del graph.value_info[:]
    graph.value_info.extend(between)
    return part


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16, with casts behind its inputs and before its outputs."""
    halved: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    inputs = {info.name for info in halved.graph.input}
    # The casts come last: those that read inputs belong in front of who reads them.
    nodes = sorted(
        halved.graph.node, key=lambda node: node.op_type != "Cast" or node.input[0] not in inputs
    )
    del halved.graph.node[:]
    halved.graph.node.extend(nodes)
    return halved


# float16 changes eps by 0.0005; ten times as much is another reason than rounding.
IN_HALF_PRECISION = Precision("in half precision", _halved_unet, "halved_from_unet_sha256", 0.005)

main = command(IN_HALF_PRECISION, "Writes a bundle that computes in half precision, for GPUs.")

if __name__ == "__main__":
    main(prog_name="python -m export.half_precision")
