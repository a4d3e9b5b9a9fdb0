"""The one module of serving that imports ONNX Runtime: sessions, providers, the network call."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np

from serving.bundle import EMBEDDING_NAME, UNET_NAME, Bundle, BundleError
from serving.cpu_count import usable_cpus
from serving.lanes import Float32Array

# Read by ONNX Runtime when it is imported: from 1.29 on its Linux builds send telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

logger = logging.getLogger(__name__)

Provider = Literal["cpu", "cuda"]

RUNTIME_VERSION: str = onnxruntime.__version__
"""Of ONNX Runtime."""

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Batch sizes that are used on CUDA; past the last, its multiples. On the CPU any size is."""

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_CUDA_OPTIONS = {
    "use_tf32": "0",  # 1e-3 per layer, which the sampling loop amplifies
    "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search would run anew for every shape
}
_HEAVY_OPERATORS = frozenset({"Conv", "ConvTranspose", "FusedConv", "Gemm", "MatMul", "Attention"})
_EMBEDDING_CHUNK = 1024  # rows; bounds the memory of embedding_table

# y = -x for float32 [1]: the smallest graph that shows whether a provider works at all.
_PROBE_ONNX = bytes.fromhex(
    "08083a360a0b0a017812017922034e6567120570726f62655a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)

Signature = dict[str, tuple[str, tuple[int | None, ...]]]
"""Of tensors, by name: ONNX Runtime's name of the type, and the shape with None for the batch."""


class ProviderError(Exception):
    """The execution provider that was asked for cannot be had; the message is one line."""


def resolve_provider(requested: str) -> Provider:
    """The provider to use for --provider auto, cpu or cuda. Only "auto" may end at the CPU unasked.

    Raises:
        ProviderError: for "cuda" where CUDA does not work, saying what is missing; for other names.
    """
    if requested == "cpu":
        return "cpu"
    if requested == "cuda":
        _require_cuda()
        return "cuda"
    if requested != "auto":
        raise ProviderError(f"provider must be auto, cpu or cuda, got {requested!r}")
    try:
        _require_cuda()
    except ProviderError as error:
        logger.info("provider auto: cpu, because %s", error)
        return "cpu"
    logger.info("provider auto: cuda, because a probe ran on it")
    return "cuda"


class OnnxNetwork:
    """unet.onnx as the engine's Network. To be called from one thread at a time.

    Attributes:
        provider: "cpu" or "cuda", where every heavy node is.
        num_threads: threads of one call on the CPU.
        buckets: the batch sizes that are run; empty if any size is.
    """

    def __init__(
        self, bundle: Bundle, provider: Provider = "cpu", num_threads: int | None = None
    ) -> None:
        """Loads the graph.

        Args:
            bundle: checked by load_bundle.
            provider: from resolve_provider.
            num_threads: for one call on the CPU; None for usable_cpus().

        Raises:
            BundleError: if unet.onnx does not load or is not what the manifest says.
            ProviderError: if it would not run on `provider`.
        """
        self.provider = provider
        self.num_threads = num_threads or usable_cpus()
        self.buckets: tuple[int, ...] = BUCKETS if provider == "cuda" else ()
        if provider == "cuda":
            _require_cuda()
        self._session = _load(bundle, UNET_NAME, bundle.unet_onnx, provider, self.num_threads)
        manifest = bundle.manifest
        image: Signature = {"x_t": ("tensor(float)", (None, *manifest.image_shape))}
        emb: Signature = {"emb": ("tensor(float)", (None, manifest.embedding_width))}
        eps: Signature = {"eps": image["x_t"]}
        _check_signature(bundle, UNET_NAME, self._session, image | emb, eps)
        most = self.padded_rows(1)
        self._x_padded: Float32Array = np.zeros((most, *manifest.image_shape), dtype=np.float32)
        self._emb_padded: Float32Array = np.zeros(
            (most, manifest.embedding_width), dtype=np.float32
        )

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        """x_t float32 [B, C, H, W], emb float32 [B, E] -> eps float32 [B, C, H, W], a new array.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        rows = len(x_t)
        padded = self.padded_rows(rows)
        if padded != rows:
            x_t, emb = self._pad(x_t, emb, padded)
        eps = self._session.run(["eps"], {"x_t": x_t, "emb": emb})[0]
        return cast("Float32Array", eps[:rows])

    def padded_rows(self, rows: int) -> int:
        """Rows that are computed for a batch of `rows`."""
        if not self.buckets:
            return rows
        largest = self.buckets[-1]
        if rows > largest:
            return -(-rows // largest) * largest
        return next(bucket for bucket in self.buckets if bucket >= rows)

    def _pad(
        self, x_t: Float32Array, emb: Float32Array, padded: int
    ) -> tuple[Float32Array, Float32Array]:
        rows = len(x_t)
        if padded > len(self._x_padded):
            self._x_padded = np.zeros((padded, *x_t.shape[1:]), dtype=np.float32)
            self._emb_padded = np.zeros((padded, *emb.shape[1:]), dtype=np.float32)
        x_padded, emb_padded = self._x_padded[:padded], self._emb_padded[:padded]
        x_padded[:rows], x_padded[rows:] = x_t, 0.0
        emb_padded[:rows], emb_padded[rows:] = emb, 0.0
        return x_padded, emb_padded


def embedding_table(bundle: Bundle, num_threads: int | None = None) -> Float32Array:
    """Runs embedding.onnx for every timestep and label (null too), once, on the CPU.

    Returns:
        float32 [T, null_label + 1, E].

    Raises:
        BundleError: if embedding.onnx does not load or run, is not what the manifest says, or
            gives NaN or Inf.
    """
    manifest = bundle.manifest
    session = _load(
        bundle, EMBEDDING_NAME, bundle.embedding_onnx, "cpu", num_threads or usable_cpus()
    )
    number = ("tensor(int64)", (None,))
    emb = ("tensor(float)", (None, manifest.embedding_width))
    inputs: Signature = {"t": number, "label": number}
    _check_signature(bundle, EMBEDDING_NAME, session, inputs, {"emb": emb})
    timesteps, labels = manifest.schedule.num_train_timesteps, manifest.null_label + 1
    t, label = np.divmod(np.arange(timesteps * labels, dtype=np.int64), labels)
    table: Float32Array = np.empty((t.size, manifest.embedding_width), dtype=np.float32)
    for first in range(0, t.size, _EMBEDDING_CHUNK):
        chunk = slice(first, first + _EMBEDDING_CHUNK)
        try:
            table[chunk] = session.run(["emb"], {"t": t[chunk], "label": label[chunk]})[0]
        except Exception as error:
            raise BundleError(
                f"bundle {manifest.name}: {EMBEDDING_NAME} fails for t and label within their "
                f"ranges ({_one_line(error)})"
            ) from error
    if not np.isfinite(table).all():
        raise BundleError(f"bundle {manifest.name}: {EMBEDDING_NAME} gives NaN or Inf")
    return table.reshape(timesteps, labels, -1)


def _require_cuda() -> None:
    """Runs a probe on CUDA.

    Raises:
        ProviderError: saying what is missing.
    """
    available = onnxruntime.get_available_providers()
    if _CUDA not in available:
        raise ProviderError(
            f"this ONNX Runtime {onnxruntime.__version__} is built without CUDA "
            "(install the extra serving-gpu instead of serving)"
        )
    onnxruntime.preload_dlls()
    try:
        session = _session(_PROBE_ONNX, "cuda", 1)
        session.run(None, {"x": np.ones(1, dtype=np.float32)})
    except Exception as error:
        raise ProviderError(f"CUDA does not work here ({_one_line(error)})") from error
    _refuse_fall_back(session)


def _load(
    bundle: Bundle, name: str, content: bytes, provider: Provider, num_threads: int
) -> onnxruntime.InferenceSession:
    try:
        session = _session(content, provider, num_threads)
    except Exception as error:
        raise BundleError(
            f"bundle {bundle.manifest.name}: {name} does not load ({_one_line(error)})"
        ) from error
    if provider == "cuda":
        _refuse_fall_back(session)
    return session


def _session(content: bytes, provider: Provider, num_threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; what matters of them is raised as well
    # Threads that spin between calls take the cores from the edge of the server.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers: Sequence[Any] = [(_CUDA, _CUDA_OPTIONS)] if provider == "cuda" else [_CPU]
    # enable_fallback=0: neither at creation nor in a failing run() may it retry on the CPU.
    return onnxruntime.InferenceSession(
        content, sess_options=options, providers=providers, enable_fallback=0
    )


def _refuse_fall_back(session: onnxruntime.InferenceSession) -> None:
    """Raises ProviderError unless CUDA was loaded and has every heavy node."""
    if session.get_providers()[0] != _CUDA:
        raise ProviderError(
            "ONNX Runtime could not load its CUDA provider and fell back to the CPU "
            "(a CUDA or cuDNN library is missing, or there is no device)"
        )
    elsewhere = sorted(
        {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != _CUDA
            for node in part.get_nodes()
            if node.op_type in _HEAVY_OPERATORS
        }
    )
    if elsewhere:
        raise ProviderError(f"CUDA does not run these operators: {', '.join(elsewhere)}")


def _check_signature(
    bundle: Bundle,
    name: str,
    session: onnxruntime.InferenceSession,
    inputs: Signature,
    outputs: Signature,
) -> None:
    """Raises BundleError unless the graph has these inputs and outputs, with a symbolic batch."""
    for kind, expected, found in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        names = [tensor.name for tensor in found]
        problem = None
        if sorted(names) != sorted(expected):
            problem = f"{kind}s must be {', '.join(expected)}, got {', '.join(names)}"
        for tensor in found:
            if problem:
                break
            type_name, shape = expected[tensor.name]
            if tensor.type != type_name:
                problem = f"{kind} {tensor.name} must be {type_name}, got {tensor.type}"
            elif not _shape_fits(tensor.shape, shape):
                wanted = ", ".join("batch" if size is None else str(size) for size in shape)
                problem = f"{kind} {tensor.name} must be [{wanted}], got {tensor.shape}"
        if problem:
            raise BundleError(f"bundle {bundle.manifest.name}: {name}: {problem}")


def _shape_fits(found: Sequence[int | str | None], expected: tuple[int | None, ...]) -> bool:
    """Whether fixed sizes are equal and the batch, None in `expected`, is not fixed."""
    return len(found) == len(expected) and all(
        not isinstance(size, int) if wanted is None else size == wanted
        for size, wanted in zip(found, expected, strict=True)
    )


def _one_line(error: Exception) -> str:
    """An error of ONNX Runtime without line breaks, paths and the code it starts with."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"(?<!\w)/[^\s:]+(:\d+)?", "", text)
    return re.sub(r"\s+", " ", text).strip()[:300]
