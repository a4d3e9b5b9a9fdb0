"""The plain loop: an ONNX Runtime session and NumPy, every image of a batch at the same step."""

import os
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from benchmarks.peers.drawing import INITIAL_STEP, Batch, Floats, Pixels, Tables
from diffusion.plan import Plan


class OnnxLoop:
    """The bundle's own unet.onnx with ONNX Runtime's defaults for everything but its threads.

    Args:
        model: the bundle's directory.
        tables: of the same bundle.
        num_threads: of one network call.
    """

    def __init__(self, model: Path, tables: Tables, num_threads: int) -> None:
        self._tables = tables
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self._session = onnxruntime.InferenceSession(
            model / "unet.onnx", sess_options=options, providers=["CPUExecutionProvider"]
        )

    def draw(self, batch: Batch, plan: Plan) -> Pixels:
        """Draws every row of the batch: uint8 [N, H, W] (the first channel)."""
        shape = self._tables.image_shape
        rng = np.random.default_rng(batch.seed)

        def noise_of(step: int) -> Floats:
            if batch.shared_noise:
                return batch.noise_of_server(step, shape)
            return rng.standard_normal((len(batch), *shape), dtype=np.float32)

        x = noise_of(INITIAL_STEP)
        x_0_previous = np.zeros_like(x)
        for k, t in enumerate(plan.timesteps):
            emb = self._tables.embedding[t, batch.label]
            [eps] = self._session.run(["eps"], {"x_t": x, "emb": emb})
            x_0 = np.clip((x - plan.sigma[k] * eps) / plan.alpha[k], -1.0, 1.0)
            a, b, c, s = plan.coefficients[k]
            x = a * x + b * x_0
            if c:
                x += c * x_0_previous
            if s:
                x += s * noise_of(k)
            x_0_previous = x_0
        pixels: Pixels = np.rint((np.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)[:, 0]
        return pixels
