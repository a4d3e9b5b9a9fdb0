"""LitServe with batching around the whole loop.

    python -m benchmarks.peers.litserve_server --port 8001

Tuned as its documentation says: max_batch_size for throughput, a short batch_timeout, and as many
workers as there are cores, each with one thread, so that one batch does not hold up everything.
"""

import argparse
import base64
from pathlib import Path
from typing import Any

import litserve

from benchmarks.peers.batched import MAX_ROWS, best_rows, draw_all
from benchmarks.peers.drawing import Drawing, Pixels, Tables
from benchmarks.peers.onnx_loop import OnnxLoop


class DigitsApi(litserve.LitAPI):  # type: ignore[misc]
    """Draws a batch of requests in one pass of the plain ONNX Runtime loop."""

    def __init__(self, model: Path, num_threads: int, max_rows: list[int], **batching: Any) -> None:
        super().__init__(**batching)
        self._model, self._num_threads, self._candidates = model, num_threads, max_rows

    def setup(self, device: str) -> None:
        """Once in each worker."""
        self._tables = Tables(self._model)
        self._loop = OnnxLoop(self._model, self._tables, self._num_threads)
        self._max_rows = best_rows(self._loop, self._tables, self._candidates)

    def decode_request(self, request: dict[str, Any]) -> Drawing:
        """JSON to a request."""
        return Drawing(**request)

    def batch(self, inputs: list[Drawing]) -> list[Drawing]:
        """A list stays one."""
        return inputs

    def predict(self, x: list[Drawing]) -> list[Pixels]:
        """The whole loop."""
        return draw_all(self._loop, self._tables, x, self._max_rows)

    def unbatch(self, output: list[Pixels]) -> list[Pixels]:
        """A list stays one."""
        return output

    def encode_response(self, output: Pixels) -> dict[str, str]:
        """Pixels to JSON."""
        return {"images": base64.b64encode(output.tobytes()).decode()}


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
    api = DigitsApi(
        arguments.model,
        arguments.num_threads,
        arguments.max_rows,
        max_batch_size=arguments.max_batch_size,
        batch_timeout=0.005,
    )
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=arguments.workers, timeout=False
    )
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
