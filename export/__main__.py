"""``python -m export``: a checkpoint to a verified bundle."""

import logging
import sys
from pathlib import Path
from typing import NoReturn

import click

from diffusion.samplers import SAMPLERS
from export.settings import BundleSettings


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="A checkpoint, or the folder of a run for its newest.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory of the bundle, such as models/NAME. Written only when all is verified.",
)
@click.option("--name", help="What requests call the model. [default: the name of --output]")
@click.option("--version", default=BundleSettings.version, help="Version of the model.")
@click.option(
    "--sampler",
    type=click.Choice(list(SAMPLERS)),
    default=BundleSettings.sampler,
    help="What requests get that name none.",
)
@click.option(
    "--num-steps",
    type=click.IntRange(min=1),
    default=BundleSettings.num_steps,
    help="Network calls per image of requests that name no number.",
)
@click.option(
    "--guidance-scale",
    type=click.FloatRange(0, 20),
    default=BundleSettings.guidance_scale,
    help="Guidance of requests that name none; 1 is the plain conditional model.",
)
@click.option("--force", is_flag=True, help="Replace the bundle that --output holds.")
def main(
    *,
    checkpoint: Path,
    output: Path,
    name: str | None,
    version: str,
    sampler: str,
    num_steps: int,
    guidance_scale: float,
    force: bool,
) -> None:
    """Exports a trained model to ONNX, proves that it is the same function, writes the bundle."""
    from export.report import format_table  # PyTorch takes seconds to import; --help does not
    from export.structure import GraphError
    from export.verification import Verification, VerificationFailed
    from export.writing import ExportError, export_bundle
    from serving.bundle import BundleError
    from training.checkpoint import CheckpointError

    def report(verification: Verification) -> None:
        click.echo(format_table(verification.checks))

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("export").setLevel(logging.INFO)  # the exporter beneath talks a lot
    settings = BundleSettings(
        name or output.resolve().name, version, sampler, num_steps, guidance_scale
    )
    try:
        manifest = export_bundle(checkpoint, output, settings, force=force, report=report)
    except VerificationFailed as error:
        report(error.verification)
        _fail(error)
    except (BundleError, CheckpointError, ExportError, GraphError, OSError) as error:
        _fail(error)
    size_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    click.echo(f"wrote {output}: {manifest.name} {manifest.version}, {size_bytes / 1e6:.1f} MB")


def _fail(error: Exception) -> NoReturn:
    click.echo(f"error: {' '.join(str(error).split())}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m export")
