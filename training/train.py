"""``python -m training.train``: train a model from scratch or resume a run."""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence

import torch
import tyro

from training.checkpoint import CheckpointError
from training.config import PRESETS, TrainConfig, to_dict
from training.datasets import DatasetError, load_dataset
from training.device import (
    join_processes,
    leave_processes,
    main_process_first,
    resolve_placement,
)
from training.loop import Interrupted, TrainingDiverged, train

logger = logging.getLogger("training")


def parse_arguments(arguments: Sequence[str]) -> TrainConfig:
    """Flags to a configuration: those of the preset, overridden by the others.

    Raises:
        ValueError: a value is out of range.
        SystemExit: a flag is unknown, or help was asked for.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--preset", nargs="?")
    preset = peek.parse_known_args(arguments)[0].preset  # a wrong one is refused below
    return tyro.cli(
        tyro.conf.OmitArgPrefixes[TrainConfig],
        prog="python -m training.train",
        description="Train a class-conditional DDPM. Checkpoints, logs, sample grids and the loss "
        "curve go into --output; export the last checkpoint with python -m export.",
        default=PRESETS.get(preset, TrainConfig()),
        args=list(arguments),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Returns the exit code: 0 trained to the end, 1 an error, 128 + n signal n."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        if config.dry_run:
            print(json.dumps(to_dict(config), indent=2))
            return 0
        processes = join_processes(config)
    except ValueError as error:
        logger.error("error: %s", error)
        return 1
    try:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        placement = resolve_placement(config, processes.local_rank)
        with main_process_first(processes):  # it fetches, the others find the files
            dataset = load_dataset(
                config.dataset, config.data_dir, verify=not config.allow_other_data
            )
        if processes.is_main:
            logger.info("training %s on %s", config.preset, placement)
        path = train(config, dataset, placement, processes)
        if processes.is_main:
            logger.info("done: %s", path)
        return 0
    except Interrupted as error:
        if processes.is_main:
            logger.warning("%s; continue with --resume", error)
        return 128 + error.signal_number
    except KeyboardInterrupt:  # before the first train step, or twice
        return 128 + signal.SIGINT
    except (CheckpointError, DatasetError, OSError, TrainingDiverged, ValueError) as error:
        logger.error("error: %s", error)
        return 1
    finally:
        leave_processes(processes)


if __name__ == "__main__":
    sys.exit(main())
