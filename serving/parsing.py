"""From the bytes of a request to a message, or to the reason why they are none."""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from serving import refusal
from serving.validation import Violation

MAX_REQUEST_BYTES = 64 * 1024
"""No legal request is larger than some hundred bytes; more is not even parsed."""

_MessageT = TypeVar("_MessageT", bound=Message)


def parse(kind: type[_MessageT], request: bytes) -> _MessageT:
    """Returns the message.

    Raises:
        RefusedError: INVALID_ARGUMENT, naming the size or the message's type.
    """
    if len(request) > MAX_REQUEST_BYTES:
        text = f"{len(request)} bytes; at most {MAX_REQUEST_BYTES} are accepted"
        raise refusal.invalid([Violation("request", text, "TOO_LARGE")])
    try:
        return kind.FromString(request)
    except DecodeError:
        text = f"these bytes are not a {kind.DESCRIPTOR.full_name}"
        raise refusal.invalid([Violation("request", text, "NOT_DECODABLE")]) from None
