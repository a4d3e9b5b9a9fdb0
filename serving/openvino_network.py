"""unet.onnx on OpenVINO: the CPU again, and far faster where the network is in 8 bits.

OpenVINO compiles for shapes. With the batch left open its code takes twice as long, so there is a
compiled network for each of a few batch sizes, and batches are padded to the next. Each thread has
rows of its own, as in serving.network; where there are fewer rows than threads, all of them share.
"""

import contextlib
import functools
import logging
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from serving.bundle import UNET_NAME, Bundle, BundleError
from serving.cpu_count import shares_of_threads, usable_cpus
from serving.cpu_features import saturates_8_bits
from serving.device import Provider
from serving.lanes import Float32Array
from serving.onnx_session import ProviderError, Session, one_line, unet_signature

if TYPE_CHECKING:
    import openvino

ROWS_OF_A_THREAD = (1, 2, 4, 8, 12, 16)
"""Where each has its own. Beyond the last a row gets no cheaper: larger batches are several calls.
"""

_log = logging.getLogger(__name__)


class OpenVinoNetwork:
    """unet.onnx on OpenVINO, as the engine's Network. To be called from one thread at a time.

    Attributes:
        provider: "openvino".
        num_threads: threads of one call.
        buckets: rows of the calls that are compiled.
        workers: who compute at once, for who has batches for each of them: see
            serving.engine_model.workers_of.
    """

    provider: Provider = "openvino"

    def __init__(self, bundle: Bundle, *, num_threads: int | None = None) -> None:
        """Compiles the graph for every bucket: in all a second or two, and 25 MB each.

        Args:
            bundle: checked by load_bundle.
            num_threads: for one call; None for usable_cpus().

        Raises:
            BundleError: if unet.onnx does not load or is not what the manifest says.
            ProviderError: if OpenVINO is not installed; for 8 bits where their sums would saturate.
        """
        openvino = require_openvino()
        if b"DequantizeLinear" in bundle.unet_onnx and saturates_8_bits():
            raise ProviderError(
                f"bundle {bundle.manifest.name} is in 8 bits, which OpenVINO computes wrongly on a "
                "CPU without VNNI; use --provider cpu"
            )
        self.num_threads = num_threads or usable_cpus()
        inputs, outputs = unet_signature(bundle)
        # ONNX Runtime knows what is no model of ours, and says so.
        Session(bundle, UNET_NAME, bundle.unet_onnx, inputs, outputs, num_threads=1)
        image, emb = bundle.manifest.image_shape, bundle.manifest.embedding_width
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # its own choice on new CPUs would be bfloat16
            "INFERENCE_NUM_THREADS": self.num_threads,
            "ENABLE_CPU_PINNING": False,  # another process may use these cores as well
        }
        # Rows of each part of a call, and in how many parts it is computed at once.
        kinds = [(2**n, 1) for n in range((self.num_threads - 1).bit_length())]
        kinds += [(rows, self.num_threads) for rows in ROWS_OF_A_THREAD]
        try:
            core = _core()
            model = core.read_model(bundle.unet_onnx)
            self._calls: dict[int, _Call] = {}
            for rows, parts in kinds:
                model.reshape({"x_t": [rows, *image], "emb": [rows, emb]})
                compiled = core.compile_model(model, "CPU", settings | {"NUM_STREAMS": parts})
                self._calls[rows * parts] = _Call(
                    rows, [_Part.of(compiled, rows, image, emb) for _ in range(parts)]
                )
        except RuntimeError as error:
            raise BundleError(
                f"bundle {bundle.manifest.name}: {UNET_NAME} does not compile ({one_line(error)})"
            ) from error
        self.buckets = tuple(self._calls)
        in_parts = [self._calls[rows * self.num_threads] for rows in ROWS_OF_A_THREAD]
        self.workers = tuple(
            _Worker([_Call(call.rows, [call.parts[part] for part in share]) for call in in_parts])
            for share in shares_of_threads(self.num_threads)
        )
        _log.info("%s on OpenVINO %s", bundle.manifest.name, openvino.__version__)

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        """x_t float32 [B, C, H, W], emb float32 [B, E] -> eps float32 [B, C, H, W], a new array.

        Raises:
            RuntimeError: whatever OpenVINO raises.
        """
        return _in_calls(self._calls, x_t, emb)

    def padded_rows(self, rows: int) -> int:
        """Rows that are computed for a batch of `rows`."""
        return sum(bucket for _, bucket in _batches(self.buckets, rows))


def _batches(buckets: Collection[int], rows: int) -> list[tuple[int, int]]:
    """(first row, bucket) of each call for a batch: full ones, then what is left."""
    most = max(buckets)
    return [
        (first, next(bucket for bucket in buckets if bucket >= min(most, rows - first)))
        for first in range(0, rows, most)
    ]


def _in_calls(calls: "Mapping[int, _Call]", x_t: Float32Array, emb: Float32Array) -> Float32Array:
    """eps of all rows, by calls for so many rows at most, ascending."""
    eps = np.empty_like(x_t)
    for first, bucket in _batches(calls, len(x_t)):
        batch = slice(first, first + bucket)
        calls[bucket](x_t[batch], emb[batch], eps[batch])
    return eps


@dataclass(frozen=True, slots=True)
class _Part:
    """A compiled network on memory of its own. Rows that pad are those of calls before."""

    request: "openvino.InferRequest"
    x_t: Float32Array
    emb: Float32Array
    eps: Float32Array

    @classmethod
    def of(
        cls, compiled: "openvino.CompiledModel", rows: int, image: tuple[int, ...], emb: int
    ) -> Self:
        """One that can run beside others of the same compiled network."""
        part = cls(
            compiled.create_infer_request(),
            np.zeros((rows, *image), dtype=np.float32),
            np.zeros((rows, emb), dtype=np.float32),
            np.empty((rows, *image), dtype=np.float32),
        )
        for name, array in (("x_t", part.x_t), ("emb", part.emb), ("eps", part.eps)):
            part.request.set_tensor(name, require_openvino().Tensor(array, shared_memory=True))
        return part


@dataclass(frozen=True, slots=True)
class _Call:
    """A batch in parts that are computed at once, each of `rows`."""

    rows: int
    parts: list[_Part]

    def __call__(self, x_t: Float32Array, emb: Float32Array, eps: Float32Array) -> None:
        """Writes into eps. The last part may be less than full, or not needed at all."""
        running: list[tuple[_Part, Float32Array]] = []
        with contextlib.ExitStack() as ends:  # all of them, also where one raises
            for first, part in zip(range(0, len(x_t), self.rows), self.parts, strict=False):
                rows = slice(first, first + self.rows)
                into = eps[rows]
                part.x_t[: len(into)], part.emb[: len(into)] = x_t[rows], emb[rows]
                part.request.start_async()
                ends.callback(part.request.wait)
                running.append((part, into))
        for part, into in running:
            into[:] = part.eps[: len(into)]


class _Worker:
    """Parts of calls that run beside those of other workers, as a Network."""

    def __init__(self, calls: list[_Call]) -> None:
        """`calls` by their rows, ascending."""
        self._calls = {call.rows * len(call.parts): call for call in calls}

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        return _in_calls(self._calls, x_t, emb)


@functools.cache
def _core() -> "openvino.Core":
    """The one of this process, for good.

    Each gives the thread that made it another stack for signals and, when it goes, takes that stack
    out of memory and puts back the one before. Where two go in the order in which they came, as
    when a bundle is replaced, the next signal is a segmentation fault.
    """
    core: openvino.Core = require_openvino().Core()
    return core


def require_openvino() -> Any:
    """The package, imported without the part of it that reports the import to its makers.

    Raises:
        ProviderError: it cannot be imported.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # as if it were not installed: it need not be
    try:
        import openvino
    except ImportError as error:
        raise ProviderError(
            f"OpenVINO cannot be imported ({one_line(error)}); install the extra openvino"
        ) from error
    return openvino
