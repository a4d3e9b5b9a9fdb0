"""The update as ONNX nodes: what is committed is what is built, and it is diffusion.update."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from diffusion.update import advance, guide, predict_x_0
from export.update_graph import PER_LANE, update_graph
from serving.device import NUMBERS
from tests.fakes import unet_graph

ROWS, SHAPE, WIDTH = 9, (2, 4, 6), 8


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    model = unet_graph(SHAPE, WIDTH).SerializeToString() + update_graph()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def inputs() -> dict[str, Any]:
    generator = np.random.default_rng(3)

    def normal(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    return {
        "x_t": normal(ROWS, *SHAPE),
        "emb": normal(ROWS, WIDTH),
        "step.null_row": np.arange(ROWS),
        "step.x_0_previous": normal(ROWS, *SHAPE),
        "step.noise": normal(ROWS, *SHAPE),
        **{f"step.{name}": normal(ROWS, 1, 1, 1) for name in PER_LANE},
    }


def test_the_committed_file_is_what_is_built(repository: Path) -> None:
    """If not: python -m export.update_graph serving/update.onnx."""
    assert (repository / "serving/update.onnx").read_bytes() == update_graph()


def test_both_sides_name_the_inputs_alike() -> None:
    assert PER_LANE == NUMBERS


def test_behind_the_unet_it_is_one_valid_model() -> None:
    unet = unet_graph(SHAPE, WIDTH)
    model = onnx.load_from_string(unet.SerializeToString() + update_graph())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node][: len(unet.graph.node)] == [
        node.op_type for node in unet.graph.node
    ]
    assert model.opset_import == unet.opset_import


def test_it_does_what_numpy_does_to_the_bit(session: onnxruntime.InferenceSession) -> None:
    given = inputs()
    null_row = given["step.null_row"]
    null_row[[0, 3]] = 7, 8  # two guided rows
    numbers = {name: given[f"step.{name}"].ravel() for name in PER_LANE}
    eps, x, x_0, checksum = session.run(["eps", "step.x", "step.x_0", "step.checksum"], given)
    guided = eps.copy()
    guided[[0, 3]] = guide(eps[[0, 3]], eps[[7, 8]], numbers["guidance_scale"][[0, 3]])
    expected_x_0 = predict_x_0(given["x_t"], guided, numbers["alpha"], numbers["sigma"])
    coefficients = np.stack([numbers[name] for name in "abcs"], axis=1)
    expected_x = advance(
        given["x_t"], expected_x_0, given["step.x_0_previous"], given["step.noise"], coefficients
    )
    assert 0 < np.count_nonzero(np.abs(expected_x_0) == 1.0) < expected_x_0.size
    np.testing.assert_array_equal(x_0, expected_x_0, strict=True)
    np.testing.assert_array_equal(x, expected_x, strict=True)
    np.testing.assert_array_equal(checksum, np.zeros(ROWS, dtype=np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_checksum_tells_which_rows_are_not_finite(
    session: onnxruntime.InferenceSession, value: float
) -> None:
    given = inputs()
    given["step.null_row"][2] = 5  # row 2 is guided by row 5
    given["x_t"][5, 1, 2, 3] = value
    # Through the tanh of the tiny U-Net an infinity is finite again; through the embedding, not.
    given["emb"][8] = np.nan
    [eps, checksum] = session.run(["eps", "step.checksum"], given)
    not_finite = ~np.isfinite(eps).all(axis=(1, 2, 3))
    expected = not_finite.copy()
    expected[2] |= not_finite[5]
    assert expected[8]
    np.testing.assert_array_equal(np.isnan(checksum), expected)
