"""The command `python -m serving.client generate`."""

import json
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import click

from serving.client.options import (
    Connection,
    Drawing,
    connection_options,
    drawing_options,
    json_option,
)
from serving.client.progress import progress_bar
from serving.client.reporting import one_line_errors
from serving.client.results import GeneratedImage, Generation
from serving.client.streams import ImageStream
from serving.images import encode_png, grid

_SECONDS = 300.0
_SEED_BITS = 53


@click.command()
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
@json_option
@drawing_options
@connection_options(_SECONDS)
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
    as_json: bool,
) -> None:
    """Draws images and writes them as PNG."""
    if output is None and output_dir is None:
        raise click.UsageError("say where to write: --output FILE, --output-dir DIR, or both")
    # Drawn here and not by the server, so that all labels share it and a retry repeats it.
    chosen_seed = secrets.randbits(_SEED_BITS) if seed is None else seed
    total = count * len(labels)
    start_seconds = time.monotonic()
    with (
        connection.client() as client,
        ThreadPoolExecutor(len(labels)) as threads,
        progress_bar("Drawing", total) as on_images,
    ):
        streams = [
            client.stream(
                label,
                count,
                seed=chosen_seed,
                model=drawing.model,
                sampler=drawing.sampler,
                num_steps=drawing.num_steps,
                guidance_scale=drawing.guidance_scale,
                first_index=first_index,
            )
            for label in labels
        ]
        generations = list(threads.map(lambda stream: _collect(stream, on_images), streams))
    seconds = time.monotonic() - start_seconds
    files: list[Path] = []
    if output is not None:
        files += _write_grid(output, generations, columns or (count if len(labels) > 1 else None))
    if output_dir is not None:
        files += _write_files(output_dir, generations)
    if as_json:
        click.echo(_report(generations, files, seconds))
        return
    used = generations[0]
    written = " and ".join(f"{path}" for path in (output, output_dir) if path is not None)
    click.echo(
        f"{written}: {total} image{'s' if total > 1 else ''} in {seconds:.2f} s"
        f" ({total / seconds:.1f} images/s), model {used.model} {used.model_version},"
        f" {used.sampler} {used.num_steps} steps, guidance {used.guidance_scale:g},"
        f" seed {chosen_seed}"
    )


def _collect(stream: ImageStream, on_images: Callable[[int], None]) -> Generation:
    images: list[GeneratedImage] = []
    for event in stream:
        if isinstance(event, GeneratedImage):  # there are no previews: none were asked for
            images.append(event)
            on_images(1)
    assert stream.summary is not None, "a stream that ends well has one"
    in_order = sorted(images, key=lambda image: image.index)
    return Generation(**asdict(stream.summary), images=tuple(in_order))


def _write_grid(path: Path, generations: list[Generation], columns: int | None) -> list[Path]:
    pixels = [image.pixels for generation in generations for image in generation.images]
    return [_write(path, encode_png(grid(pixels, columns)))]


def _write_files(directory: Path, generations: list[Generation]) -> list[Path]:
    return [
        _write(
            directory / str(generation.label) / f"{image.index:05d}.png",
            encode_png(image.pixels),
        )
        for generation in generations
        for image in generation.images
    ]


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _report(generations: list[Generation], files: list[Path], seconds: float) -> str:
    parts = []
    for generation in generations:
        fields = asdict(generation)
        del fields["images"]
        indices = [image.index for image in generation.images]
        parts.append({**fields, "first_index": indices[0], "count": len(indices)})
    report = {"generations": parts, "files": [str(path) for path in files], "seconds": seconds}
    return json.dumps(report, indent=2)
