"""A gRPC client that is as rude as a test wants it to be: HTTP/2 frames by hand, on one socket."""

import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Self

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

GENERATE = "/simple_diffusion.v1.DiffusionService/Generate"
GENERATE_STREAM = "/simple_diffusion.v1.DiffusionService/GenerateStream"

_READ_BYTES = 65536
_SEND_SECONDS = 10.0


def framed(message: bytes, claimed: int | None = None) -> bytes:
    """A gRPC message as it goes into DATA frames; `claimed` is a length that may be a lie."""
    return struct.pack(">BI", 0, len(message) if claimed is None else claimed) + message


@dataclass
class Stream:
    """What the server has sent on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    received_bytes: int = 0
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None


class RawConnection:
    """One connection. Everything that is sent is sent at once.

    Args:
        port: of a server on this machine.
        initial_window_bytes: how much of each answer the server may send before it is allowed
            more, which never happens unless `receive` is called.
    """

    def __init__(self, port: int, *, initial_window_bytes: int | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_SEND_SECONDS)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        if initial_window_bytes is not None:
            window = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
            self.h2.local_settings[window] = initial_window_bytes
            self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.streams: dict[int, Stream] = {}
        self.goaway: str | None = None
        self.closed = False
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def begin(self, path: str = GENERATE, **metadata: str) -> int:
        """Opens a stream with its headers; returns its number."""
        number = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *((key.replace("_", "-"), value) for key, value in metadata.items()),
        ]
        self.h2.send_headers(number, headers)
        self.streams[number] = Stream()
        return number

    def ask(self, message: bytes, path: str = GENERATE, **metadata: str) -> int:
        """Sends a whole request."""
        number = self.begin(path, **metadata)
        self.h2.send_data(number, framed(message), end_stream=True)
        return number

    def flush(self) -> None:
        """Sends what is due, unless the server has hung up."""
        self.socket.settimeout(_SEND_SECONDS)
        try:
            self.socket.sendall(self.h2.data_to_send())
        except OSError:
            self.closed = True

    def receive(self, seconds: float) -> None:
        """Takes what comes within some seconds, or until the server hangs up."""
        end_seconds = time.monotonic() + seconds
        while not self.closed and (left := end_seconds - time.monotonic()) > 0:
            if not self._receive_once(left):
                return

    def answer(self, number: int, seconds: float = 20) -> Stream:
        """Reads until a stream is over; fails if that takes too long."""
        end_seconds = time.monotonic() + seconds
        while not self.streams[number].over:
            assert not self.closed, "the server has hung up"
            assert time.monotonic() < end_seconds, "there was no answer"
            self._receive_once(0.1)
        return self.streams[number]

    def _receive_once(self, seconds: float) -> bool:
        self.socket.settimeout(max(seconds, 0.001))
        try:
            data = self.socket.recv(_READ_BYTES)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return False
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self.closed = True
            return False
        for event in events:
            self._take(event)
        self.flush()
        return True

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self.streams[event.stream_id].headers.update(event.headers)
            case h2.events.DataReceived():
                self.streams[event.stream_id].received_bytes += len(event.data)
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.streams[event.stream_id].ended = True
            case h2.events.StreamReset():
                self.streams[event.stream_id].reset = int(event.error_code)
            case h2.events.ConnectionTerminated():
                self.goaway = (event.additional_data or b"").decode()
            case _:
                pass
