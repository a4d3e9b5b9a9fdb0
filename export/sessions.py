"""The graphs in ONNX Runtime on the CPU; the one module of export that runs them."""

import os
from typing import Any, cast

import numpy.typing as npt
import torch

from diffusion.plan import Float32Array, Int64Array
from export.graphs import Graphs
from export.structure import GraphError

# Read by ONNX Runtime when it is imported: from 1.29 on its Linux builds send telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

ONNXRUNTIME_VERSION: str = onnxruntime.__version__


class OnnxModel:
    """Both graphs in ONNX Runtime on the CPU.

    Raises:
        GraphError: a graph does not load; later, does not run.
    """

    def __init__(self, graphs: Graphs) -> None:
        self._embedding = _session("embedding.onnx", graphs.embedding_onnx)
        self._unet = _session("unet.onnx", graphs.unet_onnx)

    def embed(self, t: Int64Array, label: Int64Array) -> Float32Array:
        """t, label: int64 [B]. Returns emb: float32 [B, E]."""
        return _run(self._embedding, "embedding.onnx", {"t": t, "label": label})

    def unet(self, x_t: Float32Array, emb: Float32Array) -> Float32Array:
        """x_t: float32 [B, C, H, W]; emb: float32 [B, E]. Returns eps like x_t."""
        return _run(self._unet, "unet.onnx", {"x_t": x_t, "emb": emb})

    def __call__(self, x_t: Float32Array, t: Int64Array, label: Int64Array) -> Float32Array:
        """Both together: eps like x_t."""
        return self.unet(x_t, self.embed(t, label))


def _session(name: str, content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact in 8 bits
    try:
        return onnxruntime.InferenceSession(
            content, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise GraphError(f"{name} does not load in ONNX Runtime: {error}") from error


def _run(
    session: onnxruntime.InferenceSession, name: str, inputs: dict[str, npt.NDArray[Any]]
) -> Float32Array:
    try:
        return cast("Float32Array", session.run(None, inputs)[0])
    except Exception as error:
        rows = len(next(iter(inputs.values())))
        raise GraphError(f"{name} does not run with {rows} rows: {error}") from error
