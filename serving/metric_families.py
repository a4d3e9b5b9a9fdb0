"""Every metric of the server, declared once: here. docs/operations.md lists them with queries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

GENERATE_METHODS = ("Generate", "GenerateStream", "HttpGenerate", "HttpGenerateStream")
METHODS = (*GENERATE_METHODS, "ListModels", "HttpListModels")

CODES = (
    "OK", "CANCELLED", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "RESOURCE_EXHAUSTED",
    "INTERNAL", "UNAVAILABLE", "UNAUTHENTICATED",
)  # fmt: skip
"""The statuses that a request can end with, over gRPC and over HTTP."""

REASONS = (
    "invalid_argument", "unauthenticated", "unknown_model", "queue_full", "deadline",
    "starting", "stalled", "draining", "failed",
)  # fmt: skip
"""Why a request is refused: what is wrong with it, or with the server (the phase it is in)."""

PHASES = ("arriving", "queued", "running", "sending")
"""How far a request was whose client left."""

ROW_KINDS = ("useful", "padded", "wasted")

GRPC_TYPES = ("unary", "server_stream", "client_stream", "bidi_stream")

GRPC_CODES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound",
    "AlreadyExists", "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted",
    "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated",
)  # fmt: skip
"""As go-grpc-prometheus writes them, in the order of their numbers."""

_REQUEST_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1, 1.5,
    2.5, 4, 6, 10, 20, 30, 60, 120, 300, 600, 1800,
)  # fmt: skip
_STEP_SECONDS = (
    0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15,
    0.25, 0.5, 1, 2.5, 5,
)  # fmt: skip
_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 512, 1024)

Labels = Mapping[str, tuple[str, ...]]
"""The names of labels, each with the values it can have; none where only a run can tell."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """One metric with all its series.

    Attributes:
        name: as it is published.
        kind: of metric.
        text: one sentence.
        labels: no seed and no request id among them: their values are bounded.
        buckets: upper bounds of a histogram.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: Labels = field(default_factory=dict)
    buckets: tuple[float, ...] = ()


FAMILIES: list[Family] = []
"""All of them, in the order of the documentation."""


def _add(family: Family) -> Family:
    FAMILIES.append(family)
    return family


def _counter(name: str, text: str, **labels: tuple[str, ...]) -> Family:
    return _add(Family(name=f"diffusion_{name}_total", kind="counter", text=text, labels=labels))


def _gauge(name: str, text: str, **labels: tuple[str, ...]) -> Family:
    return _add(Family(name=f"diffusion_{name}", kind="gauge", text=text, labels=labels))


def _histogram(
    name: str, text: str, buckets: tuple[float, ...], **labels: tuple[str, ...]
) -> Family:
    return _add(
        Family(
            name=f"diffusion_{name}", kind="histogram", text=text, labels=labels, buckets=buckets
        )
    )


# Requests

REQUESTS_STARTED = _counter("requests_started", "Requests that reached a method.", method=METHODS)
REQUESTS_FINISHED = _counter(
    "requests_finished",
    "Requests that ended, by the gRPC status that the server gave them.",
    method=METHODS,
    code=CODES,
)
REQUESTS_REFUSED = _counter(
    "requests_refused", "Requests refused before any work was done for them.", reason=REASONS
)
REQUESTS_CANCELLED = _counter(
    "requests_cancelled", "Requests whose client left, by how far they were.", phase=PHASES
)
REQUEST_SECONDS = _histogram(
    "request_seconds",
    "Seconds from the arrival of a request to its status.",
    _REQUEST_SECONDS,
    method=METHODS,
)
TIME_TO_FIRST_IMAGE_SECONDS = _histogram(
    "time_to_first_image_seconds",
    "Seconds from the arrival of a request to its first image being sent.",
    _REQUEST_SECONDS,
    method=GENERATE_METHODS,
    model=(),
)
QUEUE_SECONDS = _histogram(
    "queue_seconds",
    "Seconds from acceptance to the first image in a batch, of finished requests.",
    _REQUEST_SECONDS,
    model=(),
)
COMPUTE_SECONDS = _histogram(
    "compute_seconds",
    "Seconds from the first image in a batch to the last one finished, of finished requests.",
    _REQUEST_SECONDS,
    model=(),
)
REQUESTS_WAITING = _gauge(
    "requests_waiting", "Accepted requests that have not had a lane yet.", model=()
)
REQUESTS_WAITING_LIMIT = _gauge(
    "requests_waiting_limit", "The limit of that, --max-queued-requests.", model=()
)

# Images

IMAGES = _counter("images", "Images handed to clients.", model=(), label=())
IMAGES_WAITING = _gauge(
    "images_waiting", "Accepted images that wait for a lane, those set aside included.", model=()
)
IMAGES_WAITING_LIMIT = _gauge(
    "images_waiting_limit", "The limit of that, --max-queued-images.", model=()
)
PREVIEWS_DROPPED = _counter("previews_dropped", "Previews that a slow reader missed.", model=())
CACHE_HITS = _counter("cache_hits", "Images that were in the cache of finished ones.", model=())
IMAGES_SHARED = _counter(
    "images_shared", "Images that waited for an equal one in flight.", model=()
)
CACHE_BYTES = _gauge("cache_bytes", "Memory of the cache of finished images.", model=())

# The engine

LANES_IN_USE = _gauge("lanes_in_use", "Images being denoised.", model=())
LANES_CAPACITY = _gauge(
    "lanes_capacity", "Images that can be denoised at once, at present.", model=()
)
LANES_SET_ASIDE = _gauge(
    "lanes_set_aside", "Images half done that wait until it is their turn again.", model=()
)
LANE_PREEMPTIONS = _counter(
    "lane_preemptions", "Images half done that made room for more urgent ones.", model=()
)
ENGINE_STEP_SECONDS = _histogram(
    "engine_step_seconds", "Seconds of one engine step, of one worker.", _STEP_SECONDS, model=()
)
ENGINE_STEP_ROWS = _histogram(
    "engine_step_rows",
    "Network rows in one engine step of one worker, padding included.",
    _ROWS,
    model=(),
)
ROWS = _counter(
    "rows",
    "Network rows: useful once their image is finished, wasted if it was given up, padding.",
    model=(),
    kind=ROW_KINDS,
)
LAST_ENGINE_STEP_AGE_SECONDS = _gauge(
    "last_engine_step_age_seconds",
    "Age of the oldest engine step that is under way; 0 while there is no work.",
)
NETWORK_FAILURES = _counter("network_failures", "Network calls that raised.", model=())
NONFINITE_LANES = _counter(
    "nonfinite_lanes", "Images for which the network gave NaN or Inf.", model=()
)
ENGINE_RESTARTS = _counter("engine_restarts", "Engines that broke and were made anew.", model=())

# The server

READY = _gauge("ready", "1 while new clients should come here.")
DRAINING = _gauge("draining", "1 while accepted requests are being finished.")
MODEL_INFO = _gauge(
    "model_info",
    "1 for each loaded model.",
    model=(),
    version=(),
    provider=(),
    onnxruntime_version=(),
)
SELF_TEST_BIT_EQUAL = _gauge(
    "self_test_bit_equal",
    "1 if rows alone and in a crowd were equal to the bit when the model was loaded.",
    model=(),
)
MODEL_RELOADS = _counter(
    "model_reloads",
    "Bundles that were loaded again, by how that ended.",
    model=(),
    outcome=("ok", "failed"),
)
MODEL_LAST_RELOAD_SUCCESSFUL = _gauge(
    "model_last_reload_successful", "0 if the bundle on disk could not be loaded last.", model=()
)
CERTIFICATE_EXPIRY = _gauge(
    "certificate_expiry_timestamp_seconds",
    "When the certificate of the gRPC port ends, in Unix time; 0 without TLS.",
)

# gRPC as a whole, under the names that every gRPC dashboard knows (go-grpc-prometheus)

_RPC: Labels = {"grpc_type": GRPC_TYPES, "grpc_service": (), "grpc_method": ()}

GRPC_STARTED = _add(
    Family(
        name="grpc_server_started_total",
        kind="counter",
        text="Calls that reached a method of any service: health and reflection too.",
        labels=_RPC,
    )
)
GRPC_HANDLED = _add(
    Family(
        name="grpc_server_handled_total",
        kind="counter",
        text="Calls that ended, by their gRPC status.",
        labels={**_RPC, "grpc_code": GRPC_CODES},
    )
)
GRPC_HANDLING_SECONDS = _add(
    Family(
        name="grpc_server_handling_seconds",
        kind="histogram",
        text="Seconds from the arrival of a call to its status.",
        labels=_RPC,
        buckets=_REQUEST_SECONDS,
    )
)
GRPC_RECEIVED = _add(
    Family(
        name="grpc_server_msg_received_total",
        kind="counter",
        text="Messages that came in.",
        labels=_RPC,
    )
)
GRPC_SENT = _add(
    Family(
        name="grpc_server_msg_sent_total",
        kind="counter",
        text="Messages that were handed to gRPC.",
        labels=_RPC,
    )
)
