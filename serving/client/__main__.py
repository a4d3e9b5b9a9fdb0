"""`python -m serving.client`: pictures from a server, and questions to it."""

import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from serving.client.connection import READINESS
from serving.client.dataset.command import dataset
from serving.client.options import Connection, Drawing, connection_options, drawing_options
from serving.client.reporting import one_line_errors
from serving.client.results import Generation
from serving.images import encode_png, grid

_GENERATE_SECONDS = 300.0
_QUESTION_SECONDS = 10.0
_SEED_BITS = 53


@click.group(context_settings={"max_content_width": 100})
def main() -> None:
    """Asks a simple-diffusion server for images."""


main.add_command(dataset)


@main.command()
@click.option(
    "--label",
    "labels",
    type=click.IntRange(0, 2**31 - 1),
    multiple=True,
    required=True,
    help="What to draw; give it several times for several rows of the grid.",
)
@click.option(
    "--count",
    type=click.IntRange(1, 2**31 - 1),
    default=1,
    show_default=True,
    help="Images per label.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    help="The same seed gives the same images. [default: drawn and printed]",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write one PNG with all images as a grid.",
)
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write one PNG per image, DIR/LABEL/INDEX.png.",
)
@click.option("--columns", type=click.IntRange(1), help="Images per row of the grid.")
@click.option(
    "--first-index",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Index of the first image under the seed: continues an earlier request.",
)
@drawing_options
@connection_options(_GENERATE_SECONDS)
@one_line_errors
def generate(
    *,
    connection: Connection,
    drawing: Drawing,
    labels: tuple[int, ...],
    count: int,
    seed: int | None,
    output: Path | None,
    output_dir: Path | None,
    columns: int | None,
    first_index: int,
) -> None:
    """Draws images and writes them as PNG."""
    if output is None and output_dir is None:
        raise click.UsageError("say where to write: --output FILE, --output-dir DIR, or both")
    # Drawn here and not by the server, so that all labels share it and a retry repeats it.
    chosen_seed = secrets.randbits(_SEED_BITS) if seed is None else seed
    start_seconds = time.monotonic()
    with (
        connection.client() as client,
        ThreadPoolExecutor(len(labels)) as threads,
    ):
        generations = list(
            threads.map(
                lambda label: client.generate(
                    label,
                    count,
                    seed=chosen_seed,
                    model=drawing.model,
                    sampler=drawing.sampler,
                    num_steps=drawing.num_steps,
                    guidance_scale=drawing.guidance_scale,
                    first_index=first_index,
                ),
                labels,
            )
        )
    seconds = time.monotonic() - start_seconds
    if output is not None:
        _write_grid(output, generations, columns or (count if len(labels) > 1 else None))
    if output_dir is not None:
        _write_files(output_dir, generations)
    total = count * len(labels)
    used = generations[0]
    written = " and ".join(f"{path}" for path in (output, output_dir) if path is not None)
    click.echo(
        f"{written}: {total} image{'s' if total > 1 else ''} in {seconds:.2f} s"
        f" ({total / seconds:.1f} images/s), model {used.model} {used.model_version},"
        f" {used.sampler} {used.num_steps} steps, guidance {used.guidance_scale:g},"
        f" seed {chosen_seed}"
    )


def _write_grid(path: Path, generations: list[Generation], columns: int | None) -> None:
    pixels = [image.pixels for generation in generations for image in generation.images]
    _write(path, encode_png(grid(pixels, columns)))


def _write_files(directory: Path, generations: list[Generation]) -> None:
    for generation in generations:
        for image in generation.images:
            path = directory / str(generation.label) / f"{image.index:05d}.png"
            _write(path, encode_png(image.pixels))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@main.command()
@click.option(
    "--wait-seconds",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Wait this long for the server to become ready.",
)
@connection_options(_QUESTION_SECONDS)
@one_line_errors
def health(connection: Connection, wait_seconds: float) -> None:
    """Says whether the server is alive and ready; exit code 0 only if it (each of them) is."""
    ready = True
    for target in connection.targets:
        with connection.client(target) as client:
            if wait_seconds:
                client.wait_ready(wait_seconds)
            process, readiness = client.health(""), client.health(READINESS)
        if len(connection.targets) > 1:
            click.echo(target)
        click.echo(f"process {process}\nready   {readiness}")
        ready = ready and readiness == "SERVING"
    if not ready:
        sys.exit(1)


@main.command()
@connection_options(_QUESTION_SECONDS)
@one_line_errors
def models(connection: Connection) -> None:
    """Lists the models of the server, the default first."""
    with connection.client() as client:
        catalog = client.models()
    for model in catalog.models:
        click.echo(
            f"{model.name} {model.version}: {model.width}x{model.height}"
            f" {'grey' if model.channels == 1 else f'{model.channels} channels'},"
            f" {model.default_sampler} {model.default_num_steps}"
            f" of {model.num_train_timesteps} steps, guidance {model.default_guidance_scale:g}"
        )
        for label, name in enumerate(model.label_names):
            click.echo(f"  {label}  {name}")
    click.echo(f"at most {catalog.max_images_per_request} images per request")


if __name__ == "__main__":
    main(prog_name="python -m serving.client")
