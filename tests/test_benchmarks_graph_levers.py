"""Other ways to write the U-Net are the same function; 8 bits are nearly."""

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks import graph_levers
from benchmarks.graph_levers import UnknownGraph
from export.quantization import in_8_bits, sensitive_convolutions
from tests.fakes import unet_graph
from tests.tiny_export import small_graphs, small_model

ROWS = 5


@pytest.fixture(scope="module")
def plain() -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(onnx.load_from_string(small_graphs().unet_onnx))


def given() -> dict[str, np.ndarray]:
    config = small_model().config
    generator = np.random.default_rng(0)
    shape = (ROWS, config.image_channels, config.image_size, config.image_size)
    return {
        "x_t": generator.normal(size=shape).astype(np.float32),
        "emb": generator.normal(size=(ROWS, config.condition_width)).astype(np.float32),
    }


def eps_of(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact in 8 bits
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    [eps] = session.run(["eps"], inputs)
    return eps


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_attention_can_be_one_operator(plain: onnx.ModelProto) -> None:
    fused = graph_levers.fused_attention(plain)
    assert operators(fused).count("MultiHeadAttention") == 1
    assert "Softmax" not in operators(fused)
    np.testing.assert_allclose(eps_of(fused, given()), eps_of(plain, given()), atol=1e-5)


def test_film_from_a_table_leaves_no_small_products(plain: onnx.ModelProto) -> None:
    tabled = graph_levers.film_from_table(plain)
    assert "Gemm" not in operators(tabled)
    projections = [node for node in plain.graph.node if node.op_type == "Gemm"]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in plain.graph.initializer}
    inputs = given()
    emb = inputs["emb"][:, : weights[projections[0].input[1]].shape[1]]
    for number, gemm in enumerate(projections):
        inputs[f"film_{number}"] = emb @ weights[gemm.input[1]].T + weights[gemm.input[2]]
    np.testing.assert_allclose(eps_of(tabled, inputs), eps_of(plain, given()), atol=1e-4)


def test_8_bits_are_near_and_nearer_where_the_sensitive_convolutions_are_not_in_them(
    plain: onnx.ModelProto,
) -> None:
    calls, expected = [given()], eps_of(plain, given())
    sensitive = sensitive_convolutions(plain)
    full = graph_levers.full_resolution_convolutions(plain)
    assert len(full) > 2
    errors = []
    for in_float in ((), sensitive, [*sensitive, *full]):
        quantised = in_8_bits(plain, calls, in_float)
        assert operators(quantised).count("QuantizeLinear") > 0
        errors.append(np.sqrt(np.mean((eps_of(quantised, given()) - expected) ** 2)))
    assert errors[2] <= errors[1] <= errors[0] < 0.1 * expected.std()


def test_a_graph_that_is_written_otherwise_is_refused() -> None:
    with pytest.raises(UnknownGraph, match="qkv"):
        graph_levers.fused_attention(unet_graph((1, 4, 4), 8))
