"""``python -m training.train``: train a model from scratch or resume a run."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence

import torch
import tyro

from training.checkpoint import CheckpointError
from training.config import PRESETS, TrainConfig, to_dict
from training.data_checks import look_over, require_fit
from training.datasets import Dataset, DatasetError, load_dataset
from training.device import (
    Processes,
    be_deterministic,
    join_processes,
    leave_processes,
    one_process_first,
    resolve_placement,
)
from training.judgement import Judgement
from training.loop import train
from training.sanity import OverfitFailed, overfit_one_batch
from training.stopping import Interrupted
from training.trainer import TrainingDiverged
from training.validation import Judge

logger = logging.getLogger("training")

EXPECTED = (
    CheckpointError, DatasetError, OSError, OverfitFailed, TrainingDiverged, ValueError,
)  # fmt: skip
"""What ends a run with one line instead of a traceback."""


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


def find_judge(config: TrainConfig, dataset: Dataset) -> Judge | None:
    """Who judges the images that validation draws: evaluation's judges of the same data set.

    Returns:
        None, and one warning says why, if there are none, or they are not made for such images.

    Raises:
        ValueError: best.safetensors is to be selected by what they would say.
    """
    if not config.validate_num_images:
        return None
    shape, num_labels = dataset.train.images.shape[1:], config.model.num_labels
    if shape != (28, 28) or num_labels != 10:
        _say_why_unjudged(
            config, f"judges take 28 x 28 pixels and 10 labels, not {shape} and {num_labels}"
        )
        return None
    try:
        # The one place where training looks at evaluation, and it does so only when asked to.
        from evaluation.frechet import frechet_distance
        from evaluation.judge import load_judges

        judges = load_judges(config.dataset, num_threads=config.num_threads or None)
    except (ImportError, OSError, ValueError) as error:
        _say_why_unjudged(config, str(error))
        return None
    readers = [judge.predict for judge in judges.labels]
    return Judgement(dataset, judges.features.features, readers, frechet_distance)


def _say_why_unjudged(config: TrainConfig, reason: str) -> None:
    if config.select_by == "frechet":
        raise ValueError(f"select_by is frechet; legal: eps_mse, as there is no judge: {reason}")
    logger.warning("validation without Frechet distance and label accuracy: %s", reason)


def run(config: TrainConfig, processes: Processes) -> None:
    """Load the data and do what ``config`` says."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if config.deterministic:
        be_deterministic()
    placement = resolve_placement(config, processes.local_rank)
    with one_process_first(processes):  # it fetches, the others find the files
        dataset = load_dataset(config.dataset, config.data_dir, verify=not config.allow_other_data)
    require_fit(config, dataset)
    judge = None
    if processes.is_main:
        report = look_over(dataset, config.model.num_labels)
        logger.info("%s: %s", config.dataset, report.summary)
        for warning in report.warnings:
            logger.warning("%s", warning)
        logger.info("training %s on %s", config.preset, placement)
    if config.overfit_one_batch:
        overfit_one_batch(config, dataset, placement)
        return
    if processes.is_main:
        judge = find_judge(config, dataset)
    path = train(config, dataset, placement, processes, judge)
    if processes.is_main:
        logger.info("done: %s", path)


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
        run(config, processes)
        return 0
    except Interrupted as error:
        if processes.is_main:
            logger.warning("%s; continue with --resume", error)
        return 128 + error.signal_number
    except KeyboardInterrupt:  # before the first train step, or twice
        return 128 + signal.SIGINT
    except torch.OutOfMemoryError as error:
        first_line = str(error).partition("\n")[0]
        logger.error("error: %s A larger --gradient-accumulation needs less memory", first_line)
    except EXPECTED as error:
        logger.error("error: %s", error)
    finally:
        leave_processes(processes)
    return 1


if __name__ == "__main__":
    exit_code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # A thread of the process group that is still there aborts the interpreter's end now and
        # then, and torchrun takes the whole run for failed. Everything is written by now.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
