"""A loop in a process of its own: a request as a line in, its pixels as a line out.

    python -m benchmarks.peers.worker --loop onnx

What people run who have no server: requests wait for each other and run one at a time.
"""

import argparse
import base64
import sys
from pathlib import Path

from benchmarks.peers.batched import MAX_ROWS, best_rows, draw_all
from benchmarks.peers.drawing import Drawing, Loop, Tables

READY = "ready"


def make_loop(name: str, model: Path, tables: Tables, num_threads: int) -> Loop:
    """The loop of a name: onnx, or a variant of diffusers'."""
    # Each needs packages that the environments of the others do not have.
    if name == "onnx":
        from benchmarks.peers.onnx_loop import OnnxLoop

        return OnnxLoop(model, tables, num_threads)
    from benchmarks.peers.diffusers_loop import VARIANTS, DiffusersLoop

    [variant] = [each for each in VARIANTS if each == name]
    return DiffusersLoop(model, tables, num_threads, variant)


def main() -> None:
    """Answers lines until there are no more."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("models/mnist"))
    parser.add_argument("--loop", required=True)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--max-rows", type=int, nargs="+", default=MAX_ROWS)
    arguments = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    tables = Tables(arguments.model)
    loop = make_loop(arguments.loop, arguments.model, tables, arguments.num_threads)
    max_rows = best_rows(loop, tables, arguments.max_rows)
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        [images] = draw_all(loop, tables, [Drawing.from_json(line)], max_rows)
        print(base64.b64encode(images.tobytes()).decode(), file=answers, flush=True)


if __name__ == "__main__":
    main()
