"""Other ways to write the U-Net of a bundle, each a function from graph to graph.

None of them is used by the server: benchmarks.network_levers measures what they would be worth.
They know how torch.onnx writes this project's U-Net (training.unet), and raise if it does not.
"""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

CONTRIB = "com.microsoft"

Array = npt.NDArray[Any]


class UnknownGraph(Exception):
    """A graph that is not written as expected; the message says what is missing."""


class _Graph:
    """A model that is rewritten, and what is known of its tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copy.deepcopy(model)
        graph = self.model.graph
        self.shapes = {
            info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            for info in (*graph.value_info, *graph.input, *graph.output)
        }
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}

    def only_user(self, tensor: str, operator: str) -> onnx.NodeProto:
        """The one node that reads a tensor."""
        users = [node for node in self.model.graph.node if tensor in node.input]
        if [node.op_type for node in users] != [operator]:
            found = ", ".join(node.op_type for node in users) or "nothing"
            raise UnknownGraph(f"{operator} should be all that reads {tensor}, not {found}")
        return users[0]

    def constant(self, name: str, array: Array) -> str:
        """Adds an initializer."""
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def replace(self, old: list[onnx.NodeProto], new: list[onnx.NodeProto]) -> None:
        """Puts nodes where the last of the old ones was."""
        nodes = self.model.graph.node
        at = max(list(nodes).index(node) for node in old)
        kept = [(i, node) for i, node in enumerate(nodes) if not any(node is each for each in old)]
        before = [node for i, node in kept if i < at]
        after = [node for i, node in kept if i > at]
        rebuilt = [copy.deepcopy(node) for node in (*before, *new, *after)]
        del nodes[:]
        nodes.extend(rebuilt)


def fused_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """The products, the softmax and what is around them as one MultiHeadAttention."""
    graph = _Graph(model)
    nodes = graph.model.graph.node
    qkv = next((n for n in nodes if n.op_type == "Conv" and "qkv" in n.input[1]), None)
    if qkv is None:
        raise UnknownGraph("no convolution is called qkv")
    projection = next(n for n in nodes if n.op_type == "Conv" and "attention.proj" in n.input[1])
    first = list(nodes).index(graph.only_user(qkv.output[0], "Reshape"))
    last = list(nodes).index(projection)
    old = list(nodes)[first:last]
    heads = graph.shapes[next(n for n in old if n.op_type == "Softmax").output[0]][1]
    _, channels, height, width = graph.shapes[projection.input[0]]
    flat = graph.constant("attention_flat", np.array([-1, 3 * channels, height * width]))
    image = graph.constant("attention_image", np.array([-1, channels, height, width]))
    names = [f"attention_{name}" for name in ("q", "k", "v")]
    graph.replace(
        old,
        [
            helper.make_node("Reshape", [qkv.output[0], flat], ["attention_columns"]),
            helper.make_node("Transpose", ["attention_columns"], ["attention"], perm=[0, 2, 1]),
            helper.make_node("Split", ["attention"], names, axis=2, num_outputs=3),
            helper.make_node(
                "MultiHeadAttention", names, ["attended"], domain=CONTRIB, num_heads=heads
            ),
            helper.make_node("Transpose", ["attended"], ["attended_columns"], perm=[0, 2, 1]),
            helper.make_node("Reshape", ["attended_columns", image], [projection.input[0]]),
        ],
    )  # fmt: skip
    graph.model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return graph.model


def film_from_table(model: onnx.ModelProto) -> onnx.ModelProto:
    """The projections of the embedding as further inputs: what a table of them would leave.

    The inputs are called film_0, film_1, ...: float32 [batch, 2 * channels of the block].
    """
    graph = _Graph(model)
    gemms = [node for node in graph.model.graph.node if node.op_type == "Gemm"]
    for number, gemm in enumerate(gemms):
        width = graph.constants[gemm.input[1]].shape[0]
        [user] = [node for node in graph.model.graph.node if gemm.output[0] in node.input]
        user.input[list(user.input).index(gemm.output[0])] = f"film_{number}"
        graph.model.graph.input.append(
            helper.make_tensor_value_info(
                f"film_{number}", onnx.TensorProto.FLOAT, ["batch", width]
            )
        )
        graph.model.graph.node.remove(gemm)
    return graph.model


def full_resolution_convolutions(model: onnx.ModelProto) -> list[str]:
    """Nodes whose output is as large as the image."""
    graph = _Graph(model)
    full = graph.shapes[model.graph.output[0].name][2:]
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and graph.shapes[node.output[0]][2:] == full
    ]
