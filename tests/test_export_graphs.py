"""The exported graphs: what is in the file, and what is not."""

import copy
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf.message import Message
from onnx import TensorProto

from diffusion.schedule import cosine_schedule
from export.graphs import OPSET, export_graphs
from export.verification import Trajectory, verify
from tests.tiny_export import random_model, small_graphs, small_model
from tests.tiny_training import tiny_model_config

# The first test that needs the graphs exports them, which a busy machine takes a while for.
pytestmark = pytest.mark.timeout(400)

GRAPHS = ("embedding_onnx", "unet_onnx")


def graph(name: str) -> onnx.ModelProto:
    return onnx.load_from_string(getattr(small_graphs(), name))


def signature(model: onnx.ModelProto) -> list[tuple[str, int, list[str | int]]]:
    return [
        (
            info.name,
            info.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim],
        )
        for info in (*model.graph.input, *model.graph.output)
    ]


def test_names_types_and_shapes_are_those_of_a_bundle() -> None:
    emb = ("emb", TensorProto.FLOAT, ["batch", 16])
    assert signature(graph("embedding_onnx")) == [
        ("t", TensorProto.INT64, ["batch"]),
        ("label", TensorProto.INT64, ["batch"]),
        emb,
    ]
    assert signature(graph("unet_onnx")) == [
        ("x_t", TensorProto.FLOAT, ["batch", 1, 14, 14]),
        emb,
        ("eps", TensorProto.FLOAT, ["batch", 1, 14, 14]),
    ]


def test_equal_weights_give_equal_bytes() -> None:
    torch.manual_seed(123)
    again = export_graphs(copy.deepcopy(small_model()))
    assert again.embedding_onnx == small_graphs().embedding_onnx
    assert again.unet_onnx == small_graphs().unet_onnx


def messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for child in [value] if isinstance(value, Message) else value:
                yield from messages(child)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_file_says_nothing_of_the_machine_and_of_the_exporter(name: str) -> None:
    content = getattr(small_graphs(), name)
    for text in (b".py", b"site-packages", b"/training", b"torch"):
        assert text not in content
    model = graph(name)
    for message in messages(model):
        assert not getattr(message, "doc_string", "")
        assert not len(getattr(message, "metadata_props", ()))
    assert (model.producer_name, model.producer_version) == ("simple-diffusion", "")
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]


def test_only_the_batch_is_computed_at_run_time() -> None:
    model = graph("unet_onnx").graph
    constants = {tensor.name for tensor in model.initializer}
    assert "Shape" not in {node.op_type for node in model.node}
    reshapes = [node for node in model.node if node.op_type == "Reshape"]
    assert reshapes
    assert not [node.name for node in reshapes if node.input[1] not in constants]


def test_every_initialiser_and_every_node_is_used() -> None:
    for name in GRAPHS:
        model = graph(name).graph
        used = {each for node in model.node for each in node.input}
        used |= {output.name for output in model.output}
        assert not [tensor.name for tensor in model.initializer if tensor.name not in used]
        assert not [node.name for node in model.node if not used.intersection(node.output)]


def test_the_shapes_in_the_file_keep_the_batch_open() -> None:
    # Without them ONNX Runtime does not fuse the residual additions.
    model = graph("unet_onnx").graph
    convolved = {node.output[0] for node in model.node if node.op_type == "Conv"}
    shapes = {info.name: info.type.tensor_type.shape.dim for info in model.value_info}
    convolved -= {output.name for output in model.output}
    assert {shapes[name][0].dim_param for name in convolved} == {"batch"}


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_of_eps_is_the_same_to_the_bit_in_every_batch(num_threads: int) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        small_graphs().unet_onnx, options, providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    x_t = random.standard_normal((64, 1, 14, 14), dtype=np.float32)
    emb = random.standard_normal((64, 16), dtype=np.float32)

    def eps(rows: slice) -> bytes:
        found: np.ndarray = session.run(["eps"], {"x_t": x_t[rows], "emb": emb[rows]})[0]
        return found.tobytes()

    alone = [eps(slice(i, i + 1)) for i in range(64)]
    for size in (2, 3, 8, 17, 32, 64):
        for first in range(0, 65 - size, size):
            rows = slice(first, first + size)
            assert eps(rows) == b"".join(alone[rows]), f"rows {rows} of a batch of {size}"


@pytest.mark.parametrize("prediction", ["v", "residual_eps"])
def test_patches_and_other_predictions_export_too(prediction: str) -> None:
    config = tiny_model_config(image_size=16, patch_size=2, prediction=prediction, num_labels=2)
    graphs = export_graphs(random_model(config))
    verify(random_model(config), cosine_schedule(5), graphs, Trajectory("ddpm", 3))


def test_other_networks_export_too() -> None:
    # Colour, three resolutions, two blocks at each, dropout, another number of labels.
    config = tiny_model_config(
        image_channels=3,
        image_size=16,
        widths=(16, 16, 32),
        blocks_per_resolution=2,
        attention=False,
        dropout=0.2,
        num_labels=2,
        embedding_width=32,
    )
    model = random_model(config)
    verify(model, cosine_schedule(5), export_graphs(model), Trajectory("ddim", 3, 2.0))
