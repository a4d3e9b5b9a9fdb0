"""``python -m evaluation --model models/mnist``: how good are the images of a bundle?

Measures the whole protocol and writes one page, its pictures and one JSON. With --setting it
measures just these settings and prints a table. What is measured is kept in --work-dir: after
Ctrl-C the same command continues.
"""

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
from tqdm import tqdm

from diffusion.samplers import SAMPLERS
from evaluation.evaluate import evaluate, measure_settings
from evaluation.judge import JUDGES, load_judges
from evaluation.measuring import Evaluator
from evaluation.page import settings_page
from evaluation.protocol import (
    CURVE_NUM_IMAGES,
    CURVE_NUM_STEPS,
    QUICK_CURVE_NUM_IMAGES,
    QUICK_CURVE_NUM_STEPS,
    SETTING_NUM_IMAGES,
    full_protocol,
    plan_curve,
    quick_protocol,
)
from evaluation.report import draw_pictures, to_json, update_manifest, write_report
from evaluation.sampling import ImageSource
from evaluation.setting import FORM, parse_setting
from evaluation.store import Store
from serving.bundle import BundleError
from serving.device import PROVIDER_CHOICES
from serving.network import ProviderError
from training.config import require
from training.datasets import DATASETS, DatasetError, load_dataset

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
Number = TypeVar("Number", int, float)
_FAILURES = (BundleError, DatasetError, OSError, ProviderError, RuntimeError, ValueError)


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 100})
@click.option("--model", type=click.Path(path_type=Path), default=Path("models/mnist"),
              help="Bundle.")  # fmt: skip
@click.option("--quick", is_flag=True, help="A look at everything in minutes; marked as such.")
@click.option("--setting", "settings", multiple=True,
              help=f"Only this, as a table: {FORM}; repeatable.")  # fmt: skip
@click.option("--num-images", type=int,
              help="N. [default: 10000; with --quick 1000, with --setting 2000]")  # fmt: skip
@click.option("--seed", default=1000,
              help="Label y is drawn with seed + y; further seeds are 1000 apart.")  # fmt: skip
@click.option("--curve", is_flag=True, help="Quality against num_steps too, for every sampler.")
@click.option("--curve-num-steps", metavar="N,N,...",
              help=f"[default: {','.join(map(str, CURVE_NUM_STEPS))}; with --quick "
              f"{','.join(map(str, QUICK_CURVE_NUM_STEPS))}]")  # fmt: skip
@click.option("--curve-guidance", default="1", metavar="SCALE,SCALE,...",
              help="Guidance scales of the curve; from 100 steps on the first alone.")  # fmt: skip
@click.option("--curve-num-images", type=int, help="N. [default: 2000; with --quick 500]")
@click.option("--curve-num-images-long", type=int,
              help="N from 100 steps on. [default: that of --curve-num-images]")  # fmt: skip
@click.option("--dataset", type=click.Choice(sorted(DATASETS)),
              help="[default: what the bundle was trained on]")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), help="Directory with the IDX files.")
@click.option("--provider", type=click.Choice(PROVIDER_CHOICES), default="auto",
              help="Where images are drawn.")  # fmt: skip
@click.option("--judges", type=click.Path(path_type=Path), default=JUDGES, show_default=False,
              help="Directory with DATASET/*.onnx. [default: the shipped ones]")  # fmt: skip
@click.option("--work-dir", type=click.Path(path_type=Path),
              help="Keeps what is measured. [default: runs/evaluation/NAME]")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path),
              help="For NAME.md, NAME.json and NAME/*.png. [default: WORK_DIR/report; with "
              "--quick WORK_DIR/quick-report]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON too, or in place of the table.")
@click.option("--update-manifest", "into_manifest", is_flag=True,
              help="Write the numbers into the bundle's manifest too.")  # fmt: skip
def main(
    *,
    model: Path,
    quick: bool,
    settings: tuple[str, ...],
    num_images: int | None,
    seed: int,
    curve: bool,
    curve_num_steps: str | None,
    curve_guidance: str,
    curve_num_images: int | None,
    curve_num_images_long: int | None,
    dataset: str | None,
    data_dir: Path | None,
    provider: str,
    judges: Path,
    work_dir: Path | None,
    output: Path | None,
    as_json: bool,
    into_manifest: bool,
) -> None:
    """Command line."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    if settings and (quick or curve or into_manifest or output):
        raise click.UsageError(
            "--setting prints a table: without --quick, --curve, --output and --update-manifest"
        )
    try:
        chosen = [parse_setting(text) for text in settings]
        source = ImageSource(model, provider)
        work_dir = work_dir or Path("runs") / "evaluation" / source.manifest.name
        dataset = dataset or trained_on(source)
        evaluator = Evaluator(
            source,
            load_dataset(dataset, data_dir),
            dataset,
            load_judges(dataset, judges),
            Store(work_dir),
        )
        if chosen:
            result = measure_settings(
                evaluator, chosen, seed, given_or(num_images, SETTING_NUM_IMAGES), say
            )
            click.echo(to_json(result) if as_json else settings_page(result))
            return
        plan = None
        if curve:
            n = given_or(curve_num_images, QUICK_CURVE_NUM_IMAGES if quick else CURVE_NUM_IMAGES)
            plan = plan_curve(
                list(SAMPLERS),
                parse_numbers("curve_num_steps", curve_num_steps, int)
                if curve_num_steps
                else (QUICK_CURVE_NUM_STEPS if quick else CURVE_NUM_STEPS),
                parse_numbers("curve_guidance", curve_guidance, float),
                n,
                given_or(curve_num_images_long, n),
                seed,
                evaluator.dataset,
                source.model.schedule.num_train_timesteps,
            )
        make = quick_protocol if quick else full_protocol
        quality = evaluate(evaluator, make(evaluator.dataset, seed, num_images, plan), say)
        output = output or work_dir / ("quick-report" if quick else "report")
        page = write_report(quality, draw_pictures(evaluator, quality), output)
        say(f"wrote {page}")
        if as_json:
            click.echo(to_json(quality))
        if into_manifest:
            say(f"wrote {update_manifest(quality, model)}")
    except KeyboardInterrupt:
        say(f"interrupted; the same command continues from what {work_dir} holds")
        sys.exit(INTERRUPTED)
    except _FAILURES as error:
        raise click.ClickException(str(error)) from error


def given_or(value: int | None, default: int) -> int:
    """``value`` where it was given: 0 is no default."""
    return default if value is None else value


def parse_numbers(name: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Numbers between commas or blanks.

    Raises:
        ValueError: naming the field, if a part is no such number.
    """
    try:
        return tuple(kind(part) for part in re.split(r"[,\s]+", text.strip()))
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}; legal: numbers with commas between") from error


def trained_on(source: ImageSource) -> str:
    """The data set of a bundle's training, as its manifest has it.

    Raises:
        ValueError: the manifest does not say, or names a data set that is not known here.
    """
    name = source.manifest.provenance.get("dataset")
    known = ", ".join(sorted(DATASETS))
    require(name in DATASETS, "dataset of the manifest's provenance", repr(name), known)
    return str(name)


def say(text: str) -> None:
    """One line for the person who waits, above the progress bar."""
    tqdm.write(text, file=sys.stderr)


if __name__ == "__main__":
    main(prog_name="python -m evaluation")
