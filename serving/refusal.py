"""The ways in which a request can end badly, each with its gRPC status.

A message to a client never holds a path, a stack trace or the text of an unforeseen exception.
"""

from collections.abc import Iterable, Sequence

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from serving.validation import Violation

_MAX_ECHO = 100

Metadata = tuple[tuple[str, str | bytes], ...]


class RefusedError(Exception):
    """A request that ends with another status than OK.

    Attributes:
        code: the gRPC status.
        message: for the client, one line.
        reason: for the metrics; empty for a request that was accepted and ended badly later.
        status: the same as google.rpc.Status, with its details.
        retry_after_seconds: when to come back, if that is known.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        details: Sequence[Message] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.status = status_pb2.Status(code=code.value[0], message=message)
        for detail in details:
            packed = Any()
            packed.Pack(detail)
            self.status.details.append(packed)

    @property
    def trailing_metadata(self) -> Metadata:
        """How gRPC carries the details, and what its own retries have to know."""
        metadata: Metadata = ()
        if self.retry_after_seconds is not None:
            milliseconds = round(self.retry_after_seconds * 1000)
            metadata += (("grpc-retry-pushback-ms", str(milliseconds)),)
        if self.status.details:
            metadata += tuple(rpc_status.to_status(self.status).trailing_metadata)
        return metadata


def invalid(violations: Iterable[Violation]) -> RefusedError:
    """INVALID_ARGUMENT, naming every bad field."""
    violations = tuple(violations)
    bad_request = error_details_pb2.BadRequest()
    for violation in violations:
        bad_request.field_violations.add(
            field=violation.field, description=violation.description, reason=violation.reason
        )
    fields = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
    return RefusedError(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"invalid request: {fields}",
        reason="invalid_argument",
        details=[bad_request],
    )


def unauthenticated(what: str) -> RefusedError:
    """UNAUTHENTICATED; `what` says what this server needs or accepts."""
    return RefusedError(
        grpc.StatusCode.UNAUTHENTICATED, f"this server {what}", reason="unauthenticated"
    )


def unknown_model(name: str, known: Iterable[str]) -> RefusedError:
    """NOT_FOUND, naming what there is."""
    return RefusedError(
        grpc.StatusCode.NOT_FOUND,
        f"no model {name[:_MAX_ECHO]!r} here; this server has {', '.join(known)}",
        reason="unknown_model",
    )


def queue_full(
    waiting: int, limit: int, retry_after_seconds: float, what: str = "images"
) -> RefusedError:
    """RESOURCE_EXHAUSTED, saying when to come back. `what` are too many: images or requests."""
    return _come_back(
        f"the queue is full: {waiting} {what} wait, the limit is {limit}",
        retry_after_seconds,
        reason="queue_full",
    )


def deadline_unmeetable(
    estimate_seconds: float, left_seconds: float, retry_after_seconds: float
) -> RefusedError:
    """RESOURCE_EXHAUSTED, with the estimate that is over the request's deadline."""
    return _come_back(
        f"the deadline cannot be met: this would take about {estimate_seconds:.2f} s "
        f"and {max(left_seconds, 0.0):.2f} s are left",
        retry_after_seconds,
        reason="deadline",
    )


def _come_back(message: str, retry_after_seconds: float, *, reason: str) -> RefusedError:
    """Says when, for people and for gRPC's own retries."""
    milliseconds = max(1, round(retry_after_seconds * 1000))
    delay = Duration()
    delay.FromMilliseconds(milliseconds)
    return RefusedError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"{message}; come back in {milliseconds / 1000:g} s",
        reason=reason,
        details=[error_details_pb2.RetryInfo(retry_delay=delay)],
        retry_after_seconds=milliseconds / 1000,
    )


def unavailable(phase: str) -> RefusedError:
    """UNAVAILABLE, because of the phase the server is in."""
    return RefusedError(
        grpc.StatusCode.UNAVAILABLE,
        f"this server is {phase}; try again later, or another one",
        reason=phase.replace(" ", "_"),
        details=[_error_info(phase)],
    )


def abandoned() -> RefusedError:
    """UNAVAILABLE, for an accepted request that this process can no longer finish."""
    return RefusedError(
        grpc.StatusCode.UNAVAILABLE,
        "this server stopped before the request was finished; "
        "the same request gives the same images elsewhere",
        details=[_error_info("abandoned")],
    )


def _error_info(reason: str) -> Message:
    # Tells a client that a server answered: a connection that fails is UNAVAILABLE as well.
    info: Message = error_details_pb2.ErrorInfo(
        reason=reason.upper().replace(" ", "_"), domain="simple_diffusion.v1"
    )
    return info


def deadline_exceeded() -> RefusedError:
    """DEADLINE_EXCEEDED."""
    return RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline of this request passed")


def internal(error_id: str) -> RefusedError:
    """INTERNAL, with an id under which the server has logged what happened."""
    return RefusedError(
        grpc.StatusCode.INTERNAL, f"the server failed at this request (error id {error_id})"
    )
