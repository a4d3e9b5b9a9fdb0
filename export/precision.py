"""A bundle whose network computes in another precision, as a bundle of its own.

Here is what export.quantization and export.half_precision share: what the network is tried on, how
near it must stay, what is written, and the command.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from diffusion.plan import Float32Array, Int64Array
from diffusion.reference import sample
from diffusion.samplers import make_plan
from export.graphs import Graphs
from export.report import Check, failed, format_table
from export.sessions import OnnxModel
from export.structure import GraphError
from export.writing import ExportError, require_free, write_bundle
from serving.bundle import UNET_NAME, Bundle, BundleError, Manifest, file_entry, load_bundle

Call = Mapping[str, npt.NDArray[Any]]
"""Inputs of the network."""

_IMAGES_PER_LABEL = 2
_HELD_OUT_SEED = 2


@dataclass(frozen=True)
class Precision:
    """A way to write the network, and what it may cost.

    Attributes:
        words: as in "the network in 8 bits".
        convert: makes the new unet.onnx. Raises GraphError if it cannot.
        made_from: what provenance calls the sha256 of the old one.
        largest_change: of eps, whose root mean square is 1, as the root mean square over whole
            trajectories.
    """

    words: str
    convert: Callable[[Bundle], bytes]
    made_from: str
    largest_change: float


def network_calls(bundle: Bundle, seed: int) -> list[Call]:
    """What the network is given while the bundle draws images of every label at its defaults."""
    manifest = bundle.manifest
    network = OnnxModel(Graphs(bundle.embedding_onnx, bundle.unet_onnx))
    calls: list[Call] = []

    def noted(x_t: Float32Array, t: Int64Array, label: Int64Array) -> Float32Array:
        call = {"x_t": x_t.copy(), "emb": network.embed(t, label)}
        calls.append(call)
        return network.unet(**call)

    defaults = manifest.defaults
    sample(
        noted,
        make_plan(defaults.sampler, manifest.schedule.to_schedule(), defaults.num_steps),
        [label for label in range(manifest.null_label) for _ in range(_IMAGES_PER_LABEL)],
        seed,
        manifest.image_shape,
        manifest.null_label,
        guidance_scale=defaults.guidance_scale,
    )
    return calls


def write_in_precision(
    bundle: Bundle,
    precision: Precision,
    output: Path,
    name: str,
    *,
    force: bool = False,
    report: Callable[[Sequence[Check]], None],
) -> Manifest:
    """Converts, compares with the network in float32, writes.

    Args:
        bundle: in float32.
        precision: the new bundle's.
        output: the new bundle's directory.
        name: of the new bundle; its version is that of the old one.
        force: replace a bundle that stands there.
        report: gets what was measured, whether it is good enough or not.

    Returns:
        The manifest that was written. It has no report of quality.

    Raises:
        ExportError: `output` is taken, or the networks differ by too much.
        GraphError: a graph cannot be converted, or does not run.
        BundleError: what was written cannot be read back.
        OSError: it cannot be written.
    """
    require_free(output, force)
    graphs = Graphs(bundle.embedding_onnx, precision.convert(bundle))
    calls = network_calls(bundle, _HELD_OUT_SEED)
    checks = compare(bundle, graphs, calls, precision.largest_change)
    report(checks)
    if worst := failed(checks):
        raise ExportError(f"{precision.words} the network is another one: {worst[0].name}")
    manifest = bundle.manifest.model_copy(
        update={
            "name": name,
            "files": bundle.manifest.files | {UNET_NAME: file_entry(graphs.unet_onnx)},
            "verification": {"passed": True, "checks": [check.to_dict() for check in checks]},
            "quality": {},
            "provenance": bundle.manifest.provenance
            | {precision.made_from: bundle.manifest.files[UNET_NAME].sha256},
        }
    )
    write_bundle(manifest, graphs, output, force=force)
    return manifest


def compare(
    bundle: Bundle, graphs: Graphs, calls: Sequence[Call], largest_change: float
) -> list[Check]:
    """How far eps is from that of the bundle, and whether rows keep to themselves on the CPU."""
    of_bundle = OnnxModel(Graphs(bundle.embedding_onnx, bundle.unet_onnx))
    network = OnnxModel(graphs)
    squares, alone = [], []
    for call in calls:
        eps = network.unet(**call)
        squares.append(np.mean((eps - of_bundle.unet(**call)) ** 2, dtype=np.float64))
        first = network.unet(**{key: values[:1] for key, values in call.items()})
        alone.append(float(np.abs(first - eps[:1]).max()))
    change = float(np.sqrt(np.mean(squares)))
    return [
        Check("eps: root mean square of the change", change, at_most=largest_change),
        Check("eps: a row alone against the same row in a batch", max(alone), at_most=0.0),
    ]


def command(precision: Precision, text: str) -> click.Command:
    """The command that writes bundles in a precision; `text` is its help."""

    @click.command(help=text)
    @click.option(
        "--model", type=click.Path(path_type=Path), default=Path("models/mnist"), show_default=True
    )
    @click.option(
        "--output", type=click.Path(path_type=Path), required=True, help="The new bundle."
    )
    @click.option("--name", help="What requests call the model. [default: the name of --output]")
    @click.option("--force", is_flag=True, help="Replace the bundle that --output holds.")
    def main(*, model: Path, output: Path, name: str | None, force: bool) -> None:
        def report(checks: Sequence[Check]) -> None:
            click.echo(format_table(checks))

        try:
            bundle = load_bundle(model)
            name = name or output.resolve().name
            manifest = write_in_precision(
                bundle, precision, output, name, force=force, report=report
            )
        except (BundleError, ExportError, GraphError, OSError) as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            sys.exit(1)
        size_bytes = sum(entry.size_bytes for entry in manifest.files.values())
        click.echo(f"wrote {output}: {manifest.name} {manifest.version}, {size_bytes / 1e6:.1f} MB")
        click.echo(
            f"Now measure its images: python -m evaluation --model {output} --update-manifest"
        )

    return main
