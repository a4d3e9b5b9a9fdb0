"""A bundle with its convolutions in 8 bits, as a bundle of its own.

`python -m export.quantization --model models/mnist --output models/mnist-int8`

On CPUs with VNNI a call takes about half the time. It is another network, nearly the
same: how near is measured here, and how good its images are by `python -m evaluation --model ...`.
"""

import contextlib
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import onnx
from onnxruntime import quantization

from export.precision import Call, Precision, command, network_calls
from serving.bundle import Bundle

_CALIBRATION_SEED = 1


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


def _quantised_unet(bundle: Bundle) -> bytes:
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(bundle.unet_onnx))
    calls = network_calls(bundle, _CALIBRATION_SEED)
    quantised = in_8_bits(model, calls, sensitive_convolutions(model))
    return quantised.SerializeToString(deterministic=True)


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


IN_8_BITS = Precision("in 8 bits", _quantised_unet, "quantized_from_unet_sha256", 0.05)

main = command(IN_8_BITS, "Writes a bundle whose convolutions are in 8 bits.")

if __name__ == "__main__":
    main(prog_name="python -m export.quantization")
