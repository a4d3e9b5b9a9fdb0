"""diffusers on a GPU: our U-Net, our plan, torch.compile, as its documentation says for GPUs.

python -m benchmarks.peers.on_cuda prints one line of JSON: images per second by rows of a batch.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.diffusers_loop import VARIANTS, DiffusersLoop
from benchmarks.peers.drawing import Batch, Drawing, Tables


def images_per_second(
    loop: DiffusersLoop, tables: Tables, rows: int, images: int, num_steps: int
) -> float:
    """Of whole batches, one after the other, until there are so many images."""
    plan = tables.plan(num_steps)
    batch = Batch.of([Drawing(0, rows, num_steps, 0)])
    for _ in range(3):  # compiles, tunes, records
        loop.draw(batch, plan)
    batches = -(-images // rows)
    begin = time.perf_counter()
    for _ in range(batches):
        pixels = loop.draw(batch, plan)  # on the host, so it is done
    seconds = time.perf_counter() - begin
    assert np.ptp(pixels) > 0
    return batches * rows / seconds


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("models/mnist"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--variant", choices=VARIANTS, default="compile-bf16")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    arguments = parser.parse_args()
    tables = Tables(arguments.model)
    loop = DiffusersLoop(
        arguments.model, tables, torch.get_num_threads(), arguments.variant, arguments.device
    )
    measured = {
        rows: images_per_second(loop, tables, rows, arguments.images, arguments.num_steps)
        for rows in arguments.rows
    }
    print(json.dumps({"variant": arguments.variant, "images_per_second": measured}))


if __name__ == "__main__":
    main()
