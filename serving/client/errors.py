"""What a failed call means for a person: one line, without gRPC's own words."""

from typing import Any as Anything

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
_REQUEST_ID_KEY = "x-request-id"
_RESET = "RST_STREAM"
_KINDS = (error_details_pb2.BadRequest, error_details_pb2.RetryInfo, error_details_pb2.ErrorInfo)


class ClientError(Exception):
    """A call that did not succeed. The text is one readable line.

    Attributes:
        code: name of the gRPC status, for example "INVALID_ARGUMENT".
        violations: (field, what is wrong with it) for each bad field of the request.
        retry_after_seconds: when the server said to come back, or None.
        request_id: under which the server's log has the request, or None.
    """

    def __init__(
        self,
        message: str,
        code: str,
        violations: tuple[tuple[str, str], ...] = (),
        retry_after_seconds: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.violations = violations
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id


class InvalidArgumentError(ClientError):
    """Fields of the request are bad; `violations` names each of them."""


class NotFoundError(ClientError):
    """The server has no model of that name."""


class ResourceExhaustedError(ClientError):
    """The server is busy; `retry_after_seconds` says when to come back."""


class DeadlineExceededError(ClientError):
    """The answer did not come in time."""


class UnavailableError(ClientError):
    """Nobody answers, or the server is starting or draining."""


class UnauthenticatedError(ClientError):
    """The token is missing or wrong."""


class PermissionDeniedError(ClientError):
    """The token is known and does not allow this."""


class InternalError(ClientError):
    """The server failed at this request; the text holds the id under which it logged why."""


class UnimplementedError(ClientError):
    """What answers is another kind of server."""


class ModelChangedError(ClientError):
    """A stream broke, and who could go on has another version of the model: ask for all again."""


class CallCancelledError(ClientError):
    """The call was cancelled by `close`."""


_BY_CODE: dict[str, type[ClientError]] = {
    "CANCELLED": CallCancelledError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "INTERNAL": InternalError,
    "INVALID_ARGUMENT": InvalidArgumentError,
    "NOT_FOUND": NotFoundError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "RESOURCE_EXHAUSTED": ResourceExhaustedError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "UNAVAILABLE": UnavailableError,
    "UNIMPLEMENTED": UnimplementedError,
}


def deadline_exceeded(target: str) -> DeadlineExceededError:
    """Returns the error of a call whose time is over."""
    return DeadlineExceededError(
        f"the answer of {target} did not come in time", "DEADLINE_EXCEEDED"
    )


def closed() -> CallCancelledError:
    """Returns the error of a call on a client that was closed."""
    return CallCancelledError("the client was closed", "CANCELLED")


def not_ready(target: str) -> UnavailableError:
    """Returns the error of a wait for readiness that was in vain."""
    return UnavailableError(f"the server at {target} is not ready", "UNAVAILABLE")


def incomplete(target: str) -> InternalError:
    """Returns the error of a stream that ended well without all that was asked for."""
    return InternalError(f"the stream of {target} ended without all images", "INTERNAL")


def model_changed(before: str, now: str) -> ModelChangedError:
    """Returns the error of a stream whose images would be of two versions of a model."""
    return ModelChangedError(
        f"the stream broke, and the server has changed from version {before} of the model to {now}"
        " since: the images so far are of the old one; ask for all of them again",
        "ABORTED",
    )


def from_rpc_error(error: grpc.RpcError, target: str) -> ClientError:
    """Returns what a failed call to `target` means."""
    # Every error of a call is the call itself, or holds what the call holds.
    call: Anything = error
    code: str = call.code().name
    message = " ".join((call.details() or code).split())
    metadata: dict[str, str | bytes] = dict(call.trailing_metadata() or ())
    violations: tuple[tuple[str, str], ...] = ()
    pushback = str(metadata.get(_PUSHBACK_KEY))
    retry_after_seconds = int(pushback) / 1000 if pushback.isdecimal() else None
    request_id = metadata.get(_REQUEST_ID_KEY)
    answered = False
    for detail in _details(metadata.get(_DETAILS_KEY)):
        if isinstance(detail, error_details_pb2.BadRequest):
            violations = tuple((v.field, v.description) for v in detail.field_violations)
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after_seconds = detail.retry_delay.ToMilliseconds() / 1000
        else:
            answered = True
    if code == "INTERNAL" and request_id is None and _RESET in message:
        # A proxy says so when the server behind it dies in the middle of a stream. What a server
        # itself calls INTERNAL has the id of the request.
        code = "UNAVAILABLE"
    if code == message == "CANCELLED" and request_id is None:
        # gRPC's word for a call that reached a server in the moment in which it stopped. What is
        # cancelled on purpose has a text of its own.
        code = "UNAVAILABLE"
    if code == "UNAVAILABLE" and not answered:
        message = _no_answer(message, target)
    elif code == "DEADLINE_EXCEEDED":
        message = str(deadline_exceeded(target))
    elif code == "UNIMPLEMENTED":
        message = f"what answers at {target} is not a simple-diffusion server"
    kind = _BY_CODE.get(code, ClientError)
    return kind(
        message,
        code,
        violations,
        retry_after_seconds,
        request_id if isinstance(request_id, str) else None,
    )


def _no_answer(reason: str, target: str) -> str:
    """What UNAVAILABLE means if it is gRPC or a proxy that says so, and not a server."""
    if "upstream" in reason:  # Envoy's word for the servers behind it
        return f"no server behind {target} is ready"
    if "handshake" in reason:
        return (
            f"no TLS connection to {target}: one side does not trust the other's certificate,"
            " or speaks no TLS"
        )
    if any(words in reason for words in ("Socket closed", "Connection reset", "Broken pipe")):
        return (
            f"{target} closed the connection: the server has stopped, or it asks for TLS"
            " or for a certificate"
        )
    if reason == "CANCELLED":
        return f"the server at {target} has stopped"
    if _RESET in reason:
        return f"the server behind {target} stopped before the answer was complete"
    port = target.rpartition(":")[2]
    flag = f" --port {port}" if port.isdigit() and port != "50051" else ""
    return f"no server answers at {target}; start one with: python -m serving{flag}"


def _details(status: str | bytes | None) -> list[Message]:
    if not isinstance(status, bytes):
        return []
    try:
        details = status_pb2.Status.FromString(status).details
    except DecodeError:
        return []  # whatever it is, the code and the message say enough
    return [detail for packed in details for detail in _unpack(packed)]


def _unpack(packed: Any) -> list[Message]:
    for kind in _KINDS:
        if packed.Is(kind.DESCRIPTOR):
            detail: Message = kind()
            packed.Unpack(detail)
            return [detail]
    return []
