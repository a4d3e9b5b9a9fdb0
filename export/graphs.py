"""From the PyTorch model to the two ONNX graphs, as bytes that depend on the weights alone."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import Message
from onnx import numpy_helper
from torch import Tensor, nn

from export.inference_form import inference_form
from export.structure import BATCH_AXIS
from training.config import ModelConfig
from training.model import DiffusionModel
from training.unet import UNet

OPSET = 20
"""Version of the ONNX operators, whatever the exporter's default."""

_PRODUCER = "simple-diffusion"

# An example of one row would be frozen into the graph as a fixed size.
_EXAMPLE_ROWS = 2


@dataclass(frozen=True, eq=False)
class Graphs:
    """Serialised ONNX models.

    Attributes:
        embedding_onnx: (t int64 [batch], label int64 [batch]) -> emb float32 [batch, E].
        unet_onnx: (x_t float32 [batch, C, H, W], emb float32 [batch, E]) -> eps like x_t.
    """

    embedding_onnx: bytes
    unet_onnx: bytes


def export_graphs(model: DiffusionModel) -> Graphs:
    """Export both parts. Equal weights give equal bytes, on any machine and in any directory.

    Args:
        model: on the CPU, float32, in eval mode (training.checkpoint.ema_model).
    """
    # Two tensors: of one given twice the exporter makes one input.
    t = torch.zeros(_EXAMPLE_ROWS, dtype=torch.int64)
    label = torch.zeros(_EXAMPLE_ROWS, dtype=torch.int64)
    return Graphs(
        _export("embedding", model.embedding, (t, label), ["t", "label"], "emb"),
        export_unet(inference_form(model.unet), model.config),
    )


def export_unet(unet: UNet, config: ModelConfig) -> bytes:
    """The graph of a U-Net with the modules that it has.

    Args:
        unet: on the CPU, float32, in eval mode.
        config: its shape.
    """
    x_t = torch.zeros(_EXAMPLE_ROWS, config.image_channels, config.image_size, config.image_size)
    emb = torch.zeros(_EXAMPLE_ROWS, config.condition_width)
    return _export("unet", unet, (x_t, emb), ["x_t", "emb"], "eps")


def _export(
    name: str, module: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[str], output: str
) -> bytes:
    batch = torch.export.Dim(BATCH_AXIS)
    with warnings.catch_warnings():
        # The exporter says that inputs share one axis, which is meant, and what it deprecates in
        # itself; what its graph is worth is measured (export.verification).
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=tuple({0: batch} for _ in example),
            input_names=list(inputs),
            output_names=[output],
            verbose=False,
        )
    assert program is not None  # None only from the older exporter
    # The shapes stay in the file: without them ONNX Runtime does not see, past a Reshape, that two
    # batches are one, and does not fuse residual additions into convolutions.
    model = onnx.shape_inference.infer_shapes(program.model_proto, data_prop=True)
    _fix_reshapes(model.graph)
    _drop_unused(model.graph)
    _strip(model)
    model.graph.name = name
    model.producer_name, model.producer_version = _PRODUCER, ""
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _fix_reshapes(graph: onnx.GraphProto) -> None:
    """Make the target of every Reshape a constant, with -1 for the batch.

    The exporter computes it at run time from the shapes of other tensors (Shape, Slice, Concat),
    though only the batch is open. Needs inferred shapes; where they say too little, the node is
    left as it is.
    """
    infos = (*graph.value_info, *graph.output)
    shapes = {info.name: info.type.tensor_type.shape.dim for info in infos}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        sizes = shapes.get(node.output[0])
        if node.op_type != "Reshape" or node.input[1] in constants or not sizes:
            continue
        rest = [dim.dim_value for dim in sizes[1:]]
        if sizes[0].dim_value or 0 in rest:  # 0: a size that is not known
            continue
        name = "_".join(["reshape_to_batch", *map(str, rest)])
        if name not in constants:
            array = np.array([-1, *rest], dtype=np.int64)
            graph.initializer.append(numpy_helper.from_array(array, name))
            constants.add(name)
        node.input[1] = name


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and initialisers that no output depends on. Nodes stand in topological order."""
    needed = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    nodes.reverse()
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def _strip(message: Message) -> None:
    """Clear every doc string and all metadata, in which the exporter keeps local paths."""
    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        children: Sequence[Any] = [value] if isinstance(value, Message) else value
        for child in children:
            _strip(child)
