"""A bundle with its convolutions in 8 bits, as a bundle of its own.

`python -m export.quantization --model models/mnist --output models/mnist-int8`

On CPUs with VNNI a call takes about half the time. It is another network, nearly the
same: how near is measured here, and how good its images are by `python -m evaluation --model ...`.
"""

import contextlib
import logging
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime import quantization

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

LARGEST_CHANGE = 0.05
"""Of eps, whose root mean square is 1, as the root mean square over whole trajectories."""

_IMAGES_PER_LABEL = 2
_CALIBRATION_SEED, _HELD_OUT_SEED = 1, 2


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


def in_8_bits(
    model: onnx.ModelProto, calls: Sequence[Call], in_float: Collection[str] = ()
) -> onnx.ModelProto:
    """Convolutions in 8 bits: weights per channel, activations in the ranges seen in `calls`.

    Args:
        model: with inferred shapes.
        calls: what the ranges are taken from.
        in_float: nodes that stay as they are.
    """
    with tempfile.TemporaryDirectory() as directory:
        source, target = (Path(directory) / name for name in ("float.onnx", "int8.onnx"))
        onnx.save(model, source)
        with _without_advice():
            quantization.quantize_static(
                source,
                target,
                _Calibration(calls),
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=list(in_float),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        return onnx.load(target)


def sensitive_convolutions(model: onnx.ModelProto) -> list[str]:
    """Nodes that 8 bits harm most, each measured alone: see benchmarks/LEVERS.md.

    The first, and the 1x1 ones beside the blocks: what these add up to is normalised nowhere behind
    them, so that one range has to fit all of it. And the first of the first block, through which
    all that the network sees of x_t goes. (The last is a ConvTranspose, which stays in float32.)
    """
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    besides = [node for node in convolutions if node.input[1].endswith(".skip.weight")]
    return [node.name for node in (*convolutions[:2], *besides)]


def quantize_bundle(
    bundle: Bundle,
    output: Path,
    name: str,
    *,
    force: bool = False,
    report: Callable[[Sequence[Check]], None],
) -> Manifest:
    """Quantises, compares with the network in float32, writes.

    Args:
        bundle: in float32.
        output: the new bundle's directory.
        name: of the new bundle; its version is that of the old one.
        force: replace a bundle that stands there.
        report: gets what was measured, whether it is good enough or not.

    Returns:
        The manifest that was written. It has no report of quality.

    Raises:
        ExportError: `output` is taken, or the networks differ by too much.
        GraphError: a graph does not run.
        BundleError: what was written cannot be read back.
        OSError: it cannot be written.
    """
    require_free(output, force)
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(bundle.unet_onnx))
    calls = network_calls(bundle, _CALIBRATION_SEED)
    quantised = in_8_bits(model, calls, sensitive_convolutions(model))
    graphs = Graphs(bundle.embedding_onnx, quantised.SerializeToString(deterministic=True))
    checks = compare(bundle, graphs, network_calls(bundle, _HELD_OUT_SEED))
    report(checks)
    if worst := failed(checks):
        raise ExportError(f"in 8 bits the network is another one: {worst[0].name}")
    manifest = bundle.manifest.model_copy(
        update={
            "name": name,
            "files": bundle.manifest.files | {UNET_NAME: file_entry(graphs.unet_onnx)},
            "verification": {"passed": True, "checks": [check.to_dict() for check in checks]},
            "quality": {},
            "provenance": bundle.manifest.provenance
            | {"quantized_from_unet_sha256": bundle.manifest.files[UNET_NAME].sha256},
        }
    )
    write_bundle(manifest, graphs, output, force=force)
    return manifest


def compare(bundle: Bundle, graphs: Graphs, calls: Sequence[Call]) -> list[Check]:
    """How far eps is from that of the bundle, and whether rows keep to themselves."""
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
        Check("eps: root mean square of the change", change, at_most=LARGEST_CHANGE),
        Check("eps: a row alone against the same row in a batch", max(alone), at_most=0.0),
    ]


class _Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Calls, one after the other."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = iter(calls)

    def get_next(self) -> Call | None:
        """The next call's inputs."""
        return next(self._calls, None)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser logs what else could be done."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), default=Path("models/mnist"), show_default=True
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The new bundle.")
@click.option("--name", help="What requests call the model. [default: the name of --output]")
@click.option("--force", is_flag=True, help="Replace the bundle that --output holds.")
def main(*, model: Path, output: Path, name: str | None, force: bool) -> None:
    """Writes a bundle whose convolutions are in 8 bits."""

    def report(checks: Sequence[Check]) -> None:
        click.echo(format_table(checks))

    try:
        bundle = load_bundle(model)
        manifest = quantize_bundle(
            bundle, output, name or output.resolve().name, force=force, report=report
        )
    except (BundleError, ExportError, GraphError, OSError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
    size_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    click.echo(f"wrote {output}: {manifest.name} {manifest.version}, {size_bytes / 1e6:.1f} MB")
    click.echo(f"Now measure its images: python -m evaluation --model {output} --update-manifest")


if __name__ == "__main__":
    main(prog_name="python -m export.quantization")
