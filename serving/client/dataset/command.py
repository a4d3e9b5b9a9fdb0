"""The command `python -m serving.client dataset`."""

import json
import time
from pathlib import Path
from typing import Any

import click

from serving.client.dataset import writing
from serving.client.dataset.drawing import MAX_IMAGES_PER_REQUEST, draw
from serving.client.dataset.label_weights import TRAINING, label_weights
from serving.client.dataset.parquet_files import require_pyarrow
from serving.client.dataset.plan import FORMATS, DatasetPlan
from serving.client.dataset.unfinished import Unfinished
from serving.client.errors import ClientError
from serving.client.options import (
    Connection,
    Drawing,
    connection_options,
    drawing_options,
    json_option,
)
from serving.client.progress import progress_bar
from serving.client.reporting import one_line_errors
from serving.client.results import Catalog, Model
from serving.client.sync_client import Client

_REQUEST_SECONDS = 600.0
_PATIENT_ATTEMPTS = 100  # a server that is busy for minutes is no reason to give up
_IN_FLIGHT_PER_SERVER = 4
_MOST_IMAGES = 2**31


@click.command()
@click.option(
    "--count",
    type=click.IntRange(1, _MOST_IMAGES - 1),
    default=60_000,
    show_default=True,
    help="Training images.",
)
@click.option(
    "--test-count",
    type=click.IntRange(0, _MOST_IMAGES - 1),
    help="Test images, none of which is a training image. [default: a sixth of --count]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    default=0,
    show_default=True,
    help="The same seed gives the same data set.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder; a run that was interrupted goes on where it stopped.",
)
@click.option(
    "--labels",
    default=TRAINING,
    show_default=True,
    metavar="training|equal|LABEL=WEIGHT,...",
    help="How the labels share each split: as in the model's training set, equally, or by integers"
    " that say so; labels that are not named are not drawn.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    default=("idx",),
    show_default=True,
    help="idx: MNIST's four files. png: a folder per class. parquet: as Hugging Face has it."
    " May be given several times.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1, 256),
    help=f"Requests at a time. [default: {_IN_FLIGHT_PER_SERVER} per server]",
)
@json_option
@drawing_options
@connection_options(_REQUEST_SECONDS, max_attempts=_PATIENT_ATTEMPTS)
@one_line_errors
def dataset(
    *,
    connection: Connection,
    drawing: Drawing,
    count: int,
    test_count: int | None,
    seed: int,
    output: Path,
    labels: str,
    formats: tuple[str, ...],
    in_flight: int | None,
    as_json: bool,
) -> None:
    """Draws a data set of synthetic images, labelled, in files that others can read."""
    test_count = count // 6 if test_count is None else test_count
    if count + test_count > _MOST_IMAGES:
        raise click.UsageError(f"--count and --test-count are more than {_MOST_IMAGES} together")
    if "parquet" in formats:
        require_pyarrow()
    start_seconds = time.monotonic()
    with connection.client() as client:
        catalog = client.models()
        model = _find(catalog, drawing.model)
        try:
            weights = label_weights(labels, model)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="'--labels'") from None
        plan = _plan(
            model,
            drawing,
            seed=seed,
            label_weights=weights,
            train_count=count,
            test_count=test_count,
            formats=tuple(name for name in FORMATS if name in formats),
        )
        drawn, card = 0, writing.finished(output, plan)
        if card is None:
            writing.check_plan(plan)
            writing.check_room(output, plan)
            in_flight = in_flight or _IN_FLIGHT_PER_SERVER * len(connection.targets)
            drawn, card = _draw(client, plan, output, catalog, in_flight)
        elif not as_json:
            click.echo(f"{output} is complete already")
            return
    seconds = time.monotonic() - start_seconds
    if as_json:
        done = {"output": str(output), "drawn": drawn, "seconds": seconds}
        click.echo(json.dumps({**done, "card": card}, indent=2))
        return
    click.echo(
        f"{output}: {plan.train_count} training and {plan.test_count} test images in"
        f" {seconds:.1f} s ({drawn} drawn now, {drawn / seconds:.1f} images/s), model {plan.model}"
        f" {plan.model_version}, {plan.sampler} {plan.num_steps} steps, guidance"
        f" {plan.guidance_scale:g}, seed {seed}"
    )


def _plan(model: Model, drawing: Drawing, **asked: Any) -> DatasetPlan:
    scale = drawing.guidance_scale
    scale = model.default_guidance_scale if scale is None else scale
    return DatasetPlan(
        model=model.name,
        model_version=model.version,
        sampler=drawing.sampler or model.default_sampler,
        num_steps=drawing.num_steps or model.default_num_steps,
        # It came, or goes, as a float32: 1.7 and not 1.7000000476837158.
        guidance_scale=float(f"{scale:.7g}"),
        label_names=model.label_names,
        height=model.height,
        width=model.width,
        channels=model.channels,
        **asked,
    )


def _find(catalog: Catalog, name: str) -> Model:
    models = {model.name: model for model in catalog.models}
    if not name:
        return catalog.models[0]
    if name not in models:
        raise click.BadParameter(
            f"the server has {', '.join(models)}, not {name!r}", param_hint="'--model'"
        )
    return models[name]


def _draw(
    client: Client, plan: DatasetPlan, output: Path, catalog: Catalog, in_flight: int
) -> tuple[int, dict[str, Any]]:
    """Draws what is missing and writes the files; returns how many were drawn, and the card."""
    with Unfinished(output, plan) as unfinished:
        before = int(unfinished.drawn.sum())
        try:
            with progress_bar("Drawing", plan.total, before) as on_images:
                draw(
                    client,
                    plan,
                    unfinished,
                    images_per_request=min(MAX_IMAGES_PER_REQUEST, catalog.max_images_per_request),
                    in_flight=in_flight,
                    on_images=on_images,
                )
        except (ClientError, KeyboardInterrupt):
            click.echo(
                f"{int(unfinished.drawn.sum())} of {plan.total} images are kept in {output};"
                " the same command goes on from there",
                err=True,
            )
            raise
        with progress_bar("Writing", plan.total * len(plan.formats)) as on_images:
            card = writing.write(output, plan, unfinished, on_images=on_images)
    return plan.total - before, card
