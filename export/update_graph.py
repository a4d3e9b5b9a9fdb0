"""The reverse step as ONNX nodes, to be put behind the U-Net of any bundle.

`python -m export.update_graph FILE` writes it; serving/update.onnx is what it wrote. serving reads
the file's bytes and never imports onnx.

The file is no model of its own: its nodes read x_t and eps, which are not declared in it. Behind
the bytes of unet.onnx it is one: two serialised protobuf messages, one after the other, are by
definition their merged message, so that the graph has the nodes, inputs and outputs of both.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.structure import BATCH_AXIS

PREFIX = "step."
"""Of every name, so that none is one of the U-Net's."""

CLIP = 1.0
"""Bound of |x_0|; that of the value range in the manifest."""

PER_LANE = ("guidance_scale", "alpha", "sigma", "a", "b", "c", "s")
"""Inputs float32 [batch, 1, 1, 1]; what diffusion.update calls them."""


def update_graph() -> bytes:
    """diffusion.update on eps, operation by operation, hence to the bit.

    Inputs beside those of the U-Net: step.null_row int64 [batch], the row of eps that guides each
    row (its own, where it is not guided); step.x_0_previous and step.noise like x_t; PER_LANE.
    Outputs beside eps: step.x and step.x_0 like x_t; step.checksum float32 [batch], 0 where eps,
    guided, is finite and NaN where it is not.
    """
    image: list[str | int] = [BATCH_AXIS, "channels", "height", "width"]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "low": np.array(-CLIP, dtype=np.float32),
        "high": np.array(CLIP, dtype=np.float32),
        "zero": np.array(0.0, dtype=np.float32),
        "image_axes": np.array([1, 2, 3], dtype=np.int64),
    }
    own = {*PER_LANE, *constants, "null_row", "x_0_previous", "noise"}
    nodes: list[onnx.NodeProto] = []

    def name(short: str) -> str:
        return short if short in {"x_t", "eps"} else PREFIX + short

    def node(operator: str, output: str, *inputs: str, **attributes: Any) -> None:
        assert all(short in own or short in {"x_t", "eps"} for short in inputs)
        own.add(output)
        nodes.append(
            helper.make_node(
                operator, [name(i) for i in inputs], [name(output)], name(output), **attributes
            )
        )

    # guide: eps_null + guidance_scale * (eps_label - eps_null); eps itself where eps_null is eps.
    node("Gather", "eps_null", "eps", "null_row", axis=0)
    node("Sub", "direction", "eps", "eps_null")
    node("Mul", "guidance", "direction", "guidance_scale")
    node("Add", "eps_guided", "guidance", "eps_null")
    # predict_x_0: clip((x_t - sigma * eps) / alpha).
    node("Mul", "sigma_eps", "sigma", "eps_guided")
    node("Sub", "alpha_x_0", "x_t", "sigma_eps")
    node("Div", "x_0_unbounded", "alpha_x_0", "alpha")
    node("Clip", "x_0", "x_0_unbounded", "low", "high")
    # advance: a * x_t + b * x_0 + c * x_0_previous + s * noise, from the left.
    node("Mul", "a_x_t", "a", "x_t")
    node("Mul", "b_x_0", "b", "x_0")
    node("Add", "two_terms", "a_x_t", "b_x_0")
    node("Mul", "c_x_0_previous", "c", "x_0_previous")
    node("Add", "three_terms", "two_terms", "c_x_0_previous")
    node("Mul", "s_noise", "s", "noise")
    node("Add", "x", "three_terms", "s_noise")
    # 0 * NaN and 0 * Inf are NaN.
    node("Mul", "nothing", "eps_guided", "zero")
    node("ReduceSum", "checksum", "nothing", "image_axes", keepdims=0)

    def tensor(short: str, shape: list[str | int], kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name(short), kind, shape)

    graph = helper.make_graph(
        nodes,
        "step",
        inputs=[
            tensor("null_row", [BATCH_AXIS], TensorProto.INT64),
            *(tensor(short, image, TensorProto.FLOAT) for short in ("x_0_previous", "noise")),
            *(tensor(short, [BATCH_AXIS, 1, 1, 1], TensorProto.FLOAT) for short in PER_LANE),
        ],
        outputs=[
            *(tensor(short, image, TensorProto.FLOAT) for short in ("x", "x_0")),
            tensor("checksum", [BATCH_AXIS], TensorProto.FLOAT),
        ],
        initializer=[numpy_helper.from_array(array, name(k)) for k, array in constants.items()],
    )
    # Only the graph: version and operator set are the U-Net's.
    return onnx.ModelProto(graph=graph).SerializeToString(deterministic=True)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(update_graph())
