"""unet.onnx on OpenVINO: the CPU again, and far faster where the network is in 8 bits.

OpenVINO compiles for shapes. With the batch left open its code takes twice as long, so there is a
compiled network for each of a few batch sizes, and batches are padded to the next.
"""

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.bundle import UNET_NAME, Bundle, BundleError
from serving.cpu_count import usable_cpus
from serving.device import Provider
from serving.lanes import Float32Array
from serving.onnx_session import ProviderError, Session, one_line, unet_signature

if TYPE_CHECKING:
    import openvino

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Rows of a call. Beyond the last a row gets no cheaper: larger batches are several calls."""

_log = logging.getLogger(__name__)


class OpenVinoNetwork:
    """unet.onnx on OpenVINO, as the engine's Network. To be called from one thread at a time.

    Attributes:
        provider: "openvino".
        num_threads: threads of one call.
        buckets: rows of the calls that are compiled.
    """

    provider: Provider = "openvino"
    buckets = BUCKETS

    def __init__(self, bundle: Bundle, *, num_threads: int | None = None) -> None:
        """Compiles the graph for every bucket: in all a second or two, and 25 MB each.

        Args:
            bundle: checked by load_bundle.
            num_threads: for one call; None for usable_cpus().

        Raises:
            BundleError: if unet.onnx does not load or is not what the manifest says.
            ProviderError: if OpenVINO is not installed.
        """
        openvino = require_openvino()
        self.num_threads = num_threads or usable_cpus()
        inputs, outputs = unet_signature(bundle)
        # ONNX Runtime knows what is no model of ours, and says so.
        Session(bundle, UNET_NAME, bundle.unet_onnx, inputs, outputs, num_threads=1)
        image, emb = bundle.manifest.image_shape, bundle.manifest.embedding_width
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # its own choice on new CPUs would be bfloat16
            "INFERENCE_NUM_THREADS": self.num_threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # another process may use these cores as well
        }
        try:
            core = openvino.Core()
            model = core.read_model(bundle.unet_onnx)
            self._calls: dict[int, _Call] = {}
            for rows in self.buckets:
                model.reshape({"x_t": [rows, *image], "emb": [rows, emb]})
                request = core.compile_model(model, "CPU", settings).create_infer_request()
                call = _Call(
                    request,
                    np.zeros((rows, *image), dtype=np.float32),
                    np.zeros((rows, emb), dtype=np.float32),
                    np.empty((rows, *image), dtype=np.float32),
                )
                for name, array in (("x_t", call.x_t), ("emb", call.emb), ("eps", call.eps)):
                    request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
                self._calls[rows] = call
        except RuntimeError as error:
            raise BundleError(
                f"bundle {bundle.manifest.name}: {UNET_NAME} does not compile ({one_line(error)})"
            ) from error
        _log.info("%s on OpenVINO %s", bundle.manifest.name, openvino.__version__)

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        """x_t float32 [B, C, H, W], emb float32 [B, E] -> eps float32 [B, C, H, W], a new array.

        Raises:
            RuntimeError: whatever OpenVINO raises.
        """
        eps = np.empty_like(x_t)
        for first, rows in self._parts(len(x_t)):
            part = slice(first, first + rows)
            call = self._calls[self._bucket(rows)]
            call.x_t[:rows], call.emb[:rows] = x_t[part], emb[part]
            call.request.infer()
            eps[part] = call.eps[:rows]
        return eps

    def padded_rows(self, rows: int) -> int:
        """Rows that are computed for a batch of `rows`."""
        return sum(self._bucket(part) for _, part in self._parts(rows))

    def _parts(self, rows: int) -> list[tuple[int, int]]:
        """(first row, rows) of each call for a batch: full ones, then what is left."""
        most = self.buckets[-1]
        return [(first, min(most, rows - first)) for first in range(0, rows, most)]

    def _bucket(self, rows: int) -> int:
        return next(bucket for bucket in self.buckets if bucket >= rows)


@dataclass(frozen=True, slots=True)
class _Call:
    """A compiled network on memory of its own. Rows that pad are those of calls before."""

    request: "openvino.InferRequest"
    x_t: Float32Array
    emb: Float32Array
    eps: Float32Array


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
