"""Turns messages into what HTTP callers understand. Encoding takes time: off the event loop."""

import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from serving import images
from simple_diffusion.v1 import diffusion_pb2 as pb


def as_json(message: Message) -> dict[str, Any]:
    """Returns a message as proto3's JSON, with the names of the proto and without gaps.

    So uint64 is a string, bytes are base64, and enums are names.
    """
    fields: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return fields


def json_body(message: Message) -> bytes:
    """Returns the body of a JSON answer."""
    return _compact(as_json(message))


def png_body(response: pb.GenerateResponse) -> bytes:
    """Returns one PNG with the images as a grid, for a response whose images are PNG."""
    pixels = [images.decode_png(image.data) for image in response.images]
    return images.encode_png(images.grid(pixels))


def event(message: pb.GenerateStreamResponse) -> bytes:
    """Returns a server-sent event: image, preview or summary."""
    kind = message.WhichOneof("event")
    assert kind is not None
    return server_sent(kind, as_json(getattr(message, kind)))


def server_sent(kind: str, fields: dict[str, Any]) -> bytes:
    """Returns one server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), _compact(fields))


def comment(text: str) -> bytes:
    """Returns what readers of server-sent events pass over."""
    return f": {text}\n\n".encode()


def _compact(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()
