"""The one module of serving that imports ONNX Runtime: providers, sessions, bound calls."""

import os
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.bundle import Bundle, BundleError
from serving.cpu_features import saturates_8_bits
from serving.device import Device, Provider, Tensor
from serving.recording import CUDA

# Read by ONNX Runtime when it is imported: from 1.29 on its Linux builds send telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_LOG_SEVERITY = 3  # errors; what matters of them is raised as well
_CUDA_OPTIONS = {
    "use_tf32": "0",  # 1e-3 per layer, which the sampling loop amplifies
    "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search would run anew for every shape
}

# y = -x for float32 [1]: the smallest graph that shows whether a provider works at all.
_PROBE_ONNX = bytes.fromhex(
    "08083a360a0b0a017812017922034e6567120570726f62655a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)

Signature = dict[str, tuple[str, tuple[int | None, ...] | None]]
"""Of tensors, by name: ONNX Runtime's name of the type, and the shape with None for the batch; None
for a shape that is not checked."""


RUNTIME_VERSION: str = onnxruntime.__version__
"""Of ONNX Runtime."""


class ProviderError(Exception):
    """The execution provider that was asked for cannot be had; the message is one line."""


class Session:
    """A loaded graph of a bundle. To be called from one thread at a time."""

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        content: bytes,
        inputs: Signature,
        outputs: Signature,
        *,
        num_threads: int,
        spin: bool = False,
        device: Device | None = None,
    ) -> None:
        """Loads the graph.

        Args:
            bundle: what it belongs to, for the messages.
            name: of the file, for the messages too.
            content: the model.
            inputs: what its inputs must be.
            outputs: what its outputs must be.
            num_threads: for one call on the CPU.
            spin: whether these threads wait for each other awake within a call.
            device: whose memory calls are bound to; None for the host's. On CUDA every node has
                to run there: a call is recorded once as a CUDA graph and replayed from then on.

        Raises:
            BundleError: if it does not load or is something else.
            ProviderError: if it would not run on `device`.
        """
        provider: Provider = "cpu" if device is None else device.provider
        options: dict[str, str] = {}
        if device is not None and provider == "cuda":
            options = {"enable_cuda_graph": "1", "user_compute_stream": str(device.stream)}
        try:
            with CUDA.use() if provider == "cuda" else nullcontext():
                self._session = _session(content, provider, num_threads, options, spin=spin)
        except Exception as error:
            raise BundleError(
                f"bundle {bundle.manifest.name}: {name} does not load ({one_line(error)})"
            ) from error
        if provider == "cuda":
            _refuse_fall_back(self._session)
        _check_signature(bundle, name, self._session, inputs, outputs)
        self._provider = provider

    def run(self, output: str, inputs: Mapping[str, npt.NDArray[Any]]) -> Any:
        """One output of a call on arrays of the host, a new array.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        return self._session.run([output], inputs)[0]

    def bind(
        self, number: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> "BoundCall":
        """A call that reads and writes these tensors every time.

        Args:
            number: another one, from 1 on, for every call that is bound.
            inputs: every input, at its full shape.
            outputs: the outputs that are wanted.
        """
        return BoundCall(self._session, self._provider, number, inputs, outputs)


class BoundCall:
    """A call of a session on memory that never moves.

    On CUDA the first call of every thread records a CUDA graph, while others wait. ONNX Runtime
    runs it a few times for that, which does no harm because no output is an input.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        provider: Provider,
        number: int,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
    ) -> None:
        """See Session.bind."""
        self._session = session
        self._records = provider == "cuda"
        self._thread = threading.local()
        self._tensors = (*inputs.values(), *outputs.values())  # keeps their memory
        self._binding = session.io_binding()
        for bind, tensors in (
            (self._binding.bind_input, inputs),
            (self._binding.bind_output, outputs),
        ):
            for name, tensor in tensors.items():
                bind(name, provider, 0, tensor.dtype.type, list(tensor.shape), tensor.pointer)
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = _LOG_SEVERITY
        self._options.add_run_config_entry("gpu_graph_id", str(number))  # 0 means none

    def __call__(self) -> None:
        """Runs it; the outputs are complete when it returns.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        if not self._records:
            self._session.run_with_iobinding(self._binding, self._options)
        elif getattr(self._thread, "has_recorded", False):
            with CUDA.use():
                self._session.run_with_iobinding(self._binding, self._options)
        else:
            with CUDA.record():
                self._session.run_with_iobinding(self._binding, self._options)
            self._thread.has_recorded = True


def one_line(error: Exception) -> str:
    """An error of ONNX Runtime without line breaks, paths and the code it starts with.

    Of a call of CUDA that failed, what CUDA says of it: before that come templates of C++.
    """
    if of_cuda := re.search(r"\b\w+ failure \d+: [^;]+", str(error)):
        return re.sub(r"\s+", " ", of_cuda.group()).strip()
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"(?<!\w)/[^\s:]+(:\d+)?", "", text)
    return re.sub(r"\s+", " ", text).strip()[:300]


def unet_signature(bundle: Bundle) -> tuple[Signature, Signature]:
    """Inputs and outputs that unet.onnx must have."""
    image = ("tensor(float)", (None, *bundle.manifest.image_shape))
    emb = ("tensor(float)", (None, bundle.manifest.embedding_width))
    return {"x_t": image, "emb": emb}, {"eps": image}


def require_cuda() -> None:
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
        with CUDA.use():
            session = _session(_PROBE_ONNX, "cuda", 1, {})
            session.run(None, {"x": np.ones(1, dtype=np.float32)})
    except Exception as error:
        raise ProviderError(f"CUDA does not work here ({one_line(error)})") from error
    _refuse_fall_back(session)


def _session(
    content: bytes,
    provider: Provider,
    num_threads: int,
    cuda_options: Mapping[str, str],
    *,
    spin: bool = False,
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_SEVERITY
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    # Threads that spin between calls would take the cores from the edge of the server.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if saturates_8_bits():  # where it does not, this would only be slower
        options.add_session_config_entry("session.x64quantprecision", "1")
    providers: Sequence[Any] = [_CPU]
    if provider == "cuda":
        providers = [(_CUDA, {**_CUDA_OPTIONS, **cuda_options})]
    # enable_fallback=0: neither at creation nor in a failing run() may it retry on the CPU.
    return onnxruntime.InferenceSession(
        content, sess_options=options, providers=providers, enable_fallback=0
    )


def _refuse_fall_back(session: onnxruntime.InferenceSession) -> None:
    """Raises ProviderError unless CUDA was loaded and has every node."""
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
            elif shape is not None and not _shape_fits(tensor.shape, shape):
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
