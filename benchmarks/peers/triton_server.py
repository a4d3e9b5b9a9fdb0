"""Triton through nvidia-pytriton, with its dynamic batcher around the whole loop.

    python -m benchmarks.peers.triton_server --port 8002

Tuned as its documentation says: the dynamic batcher without a queue delay, and an instance of the
model for each core, with one thread each, so that one batch does not hold up everything.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.batched import MAX_ROWS, best_rows, draw_all
from benchmarks.peers.drawing import Drawing, Tables
from benchmarks.peers.onnx_loop import OnnxLoop

_FIELDS = ("label", "count", "num_steps", "seed", "shared_noise")


class DigitsModel:
    """One instance of the model."""

    def __init__(self, model: Path, num_threads: int, max_rows: list[int]) -> None:
        self._tables = Tables(model)
        self._loop = OnnxLoop(model, self._tables, num_threads)
        self._max_rows = best_rows(self._loop, self._tables, max_rows)

    def __call__(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The whole loop for a batch of requests, each [1, 1] int64 per field."""
        drawings = []
        for request in requests:
            label, count, num_steps, seed, shared_noise = (int(request[n][0, 0]) for n in _FIELDS)
            drawings.append(Drawing(label, count, num_steps, seed, bool(shared_noise)))
        images = draw_all(self._loop, self._tables, drawings, self._max_rows)
        return [{"images": each.reshape(1, -1)} for each in images]


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("models/mnist"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--max-rows", type=int, nargs="+", default=MAX_ROWS)
    parser.add_argument("--max-batch-size", type=int, default=64)
    arguments = parser.parse_args()
    instances = [
        DigitsModel(arguments.model, arguments.num_threads, arguments.max_rows)
        for _ in range(arguments.workers)
    ]
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=arguments.port,
        allow_grpc=False,
        allow_metrics=False,
    )
    with (
        tempfile.TemporaryDirectory() as workspace,
        Triton(config=config, workspace=Path(workspace) / "triton") as triton,
    ):
        triton.bind(
            model_name="digits",
            infer_func=instances,
            inputs=[Tensor(name=name, dtype=np.int64, shape=(1,)) for name in _FIELDS],
            outputs=[Tensor(name="images", dtype=np.uint8, shape=(-1,))],
            config=ModelConfig(
                max_batch_size=arguments.max_batch_size,
                batcher=DynamicBatcher(max_queue_delay_microseconds=0),
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
