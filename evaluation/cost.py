"""What a bundle costs: parameters, multiply-adds of a call, and what its training took.

Parameters and multiply-adds are counted when a bundle is exported (export.structure), and stand in
its manifest beside what the training run recorded.
"""

import math
from dataclasses import dataclass
from typing import Any

import onnx

from serving.bundle import EMBEDDING_NAME, UNET_NAME, Bundle

FLOP_PER_MULTIPLY_ADD = 2
TRAINING_CALLS = 3
"""A train step costs three calls: one forward, and two more for the gradients with respect to
activations and to weights (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""


@dataclass(frozen=True)
class Cost:
    """Of one bundle. What its manifest does not say is None.

    Attributes:
        parameters: trained numbers, both graphs together.
        stored_floats: what the graphs hold, counted in them: parameters and constants.
        file_bytes: sizes of both graphs together.
        multiply_adds_per_call: of unet.onnx for one image; Conv, Gemm and MatMul.
        multiply_adds_per_embedding: of embedding.onnx for one (t, label), which is tabulated once.
        images_seen: training images, with repetition.
        training_flop: counted as 3 calls and embeddings per image seen, 2 FLOP per multiply-add.
        training_seconds: wall time.
        training_machine: what it ran on, as in "CPU, fp32, channels_last; processes: 2".
    """

    parameters: int | None
    stored_floats: int
    file_bytes: int
    multiply_adds_per_call: int | None
    multiply_adds_per_embedding: int | None
    images_seen: int | None
    training_flop: int | None
    training_seconds: float | None
    training_machine: str | None

    def flop_per_image(self, rows_per_image: int) -> int | None:
        """FLOP of drawing one image.

        Args:
            rows_per_image: of the network, at least 1: one a step, two where it is guided.

        Raises:
            ValueError: rows_per_image is below 1.
        """
        if rows_per_image < 1:
            raise ValueError(f"rows_per_image is {rows_per_image}; legal: at least 1")
        if self.multiply_adds_per_call is None:
            return None
        return FLOP_PER_MULTIPLY_ADD * rows_per_image * self.multiply_adds_per_call


def cost(bundle: Bundle) -> Cost:
    """Reads the cost of a bundle from its manifest, and counts what its graphs hold.

    Args:
        bundle: from ``serving.bundle.load_bundle``.

    Raises:
        ValueError: a number that the manifest's provenance holds is negative, or not a number.
    """
    manifest = bundle.manifest
    provenance = manifest.provenance
    counted = provenance.get("multiply_adds_per_image_and_call") or {}
    unet, embedding = _integer(counted, UNET_NAME), _integer(counted, EMBEDDING_NAME)
    images_seen = _integer(provenance, "images_seen")
    training_flop = None
    if unet is not None and embedding is not None and images_seen is not None:
        calls = TRAINING_CALLS * images_seen
        training_flop = FLOP_PER_MULTIPLY_ADD * calls * (unet + embedding)
    placement, processes = provenance.get("placement"), _integer(provenance, "processes")
    return Cost(
        parameters=_integer(provenance, "parameters"),
        stored_floats=sum(_floats(g) for g in (bundle.embedding_onnx, bundle.unet_onnx)),
        file_bytes=sum(entry.size_bytes for entry in manifest.files.values()),
        multiply_adds_per_call=unet,
        multiply_adds_per_embedding=embedding,
        images_seen=images_seen,
        training_flop=training_flop,
        training_seconds=_number(provenance, "wall_seconds"),
        training_machine=None if placement is None else f"{placement}; processes: {processes or 1}",
    )


def _number(section: dict[str, Any], name: str) -> float | None:
    value = section.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"provenance: {name} is {value!r}; legal: numbers, at least 0")
    return float(value)


def _integer(section: dict[str, Any], name: str) -> int | None:
    value = _number(section, name)
    return None if value is None else int(value)


def _floats(graph: bytes) -> int:
    initializers = onnx.load_from_string(graph).graph.initializer
    return sum(math.prod(t.dims) for t in initializers if t.data_type == onnx.TensorProto.FLOAT)
