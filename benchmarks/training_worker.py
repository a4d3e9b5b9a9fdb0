"""One process of several that train together, on orders from the benchmark.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.training_worker

The first process reads a line at a time: a number of train steps, which it answers with a line when
they are done, or a path, to which it writes the weights.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from training.config import PRESETS
from training.datasets import load_dataset
from training.device import join_processes, leave_processes, resolve_placement
from training.trainer import Trainer

READY = "ready"


def main() -> None:
    """Trains as it is told until there are no more lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", choices=list(PRESETS), default="base")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--data-dir", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = dataclasses.replace(
        PRESETS[arguments.preset],
        data_dir=arguments.data_dir,
        allow_other_data=True,
        device="cpu",
        batch_size=arguments.batch_size,
    )
    processes = join_processes(config)
    dataset = load_dataset(config.dataset, arguments.data_dir, verify=False)
    trainer = Trainer(config, dataset, resolve_placement(config), processes)
    if processes.is_main:
        print(READY, flush=True)
    while (order := _next_order(processes.is_main)) is not None:
        if order.isdigit():
            for _ in range(int(order)):
                trainer.run_train_step()
        elif processes.is_main:
            torch.save(trainer.model.state_dict(), order)
        if processes.is_main:
            print(order, flush=True)
    leave_processes(processes)


def _next_order(is_main: bool) -> str | None:
    """The next line of the first process' standard input, in every process; None at its end."""
    line: list[str | None] = [(sys.stdin.readline().strip() or None) if is_main else None]
    if dist.is_initialized():
        dist.broadcast_object_list(line)
    return line[0]


if __name__ == "__main__":
    main()
