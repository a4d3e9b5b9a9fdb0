"""What a failed call means for a person: one line, without gRPC's own words."""

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"
_KINDS = (error_details_pb2.BadRequest, error_details_pb2.RetryInfo, error_details_pb2.ErrorInfo)


class ClientError(Exception):
    """A call that did not succeed. The text is one readable line.

    Attributes:
        code: name of the gRPC status, for example "INVALID_ARGUMENT".
        violations: (field, what is wrong with it) for each bad field of the request.
        retry_after_seconds: when the server said to come back, or None.
    """

    def __init__(
        self,
        message: str,
        code: str,
        violations: tuple[tuple[str, str], ...] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.violations = violations
        self.retry_after_seconds = retry_after_seconds


def from_rpc_error(error: grpc.RpcError, target: str) -> ClientError:
    """Returns what a failed call to `target` means."""
    code = error.code().name
    message = " ".join((error.details() or code).split())
    violations: tuple[tuple[str, str], ...] = ()
    retry_after_seconds: float | None = None
    answered = False
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.BadRequest):
            violations = tuple((v.field, v.description) for v in detail.field_violations)
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after_seconds = detail.retry_delay.ToMilliseconds() / 1000
        else:
            answered = True
    if code == "UNAVAILABLE" and not answered:
        message = f"no server answers at {target}; start one with: python -m serving"
        port = target.rpartition(":")[2]
        if port.isdigit() and port != "50051":
            message += f" --port {port}"
    elif code == "DEADLINE_EXCEEDED":
        message = f"the answer of {target} did not come in time"
    elif code == "UNIMPLEMENTED":
        message = f"what answers at {target} is not a simple-diffusion server"
    return ClientError(message, code, violations, retry_after_seconds)


def _details(error: grpc.RpcError) -> list[Message]:
    found: list[Message] = []
    for entry in error.trailing_metadata() or ():
        if entry.key == _DETAILS_KEY:
            for packed in status_pb2.Status.FromString(entry.value).details:
                found += _unpack(packed)
    return found


def _unpack(packed: Any) -> list[Message]:
    for kind in _KINDS:
        if packed.Is(kind.DESCRIPTOR):
            detail: Message = kind()
            packed.Unpack(detail)
            return [detail]
    return []
