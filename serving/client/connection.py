"""How a client connects: targets, TLS, token, and the settings of a channel."""

import json
from dataclasses import dataclass
from pathlib import Path

import grpc

from simple_diffusion.v1 import diffusion_pb2 as pb

DEFAULT_TARGET = "localhost:50051"
READINESS: str = pb.DESCRIPTOR.services_by_name["DiffusionService"].full_name
"""The health name under which a server says that it is ready."""

Metadata = tuple[tuple[str, str], ...]

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A name with several addresses is several servers.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # Attempts are ours alone (serving.client.retry).
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    # Each client has connections of its own, which end with it.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that comes back is found within seconds, not minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Finds servers that are gone without a word. The server allows one ping in 10 s and hangs up
    # on clients that send more ("too_many_pings").
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this one gRPC waits for a minute, whatever the one above says.
    ("grpc.http2.ping_timeout_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """An encrypted connection.

    Attributes:
        ca_file: PEM certificates that the server's is checked against; None for gRPC's own list.
        cert_file: PEM certificate of this client, for a server that asks for one.
        key_file: PEM private key of that.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("a client's certificate needs its key, and the other way round")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises OSError."""
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca_file),
            private_key=_read(self.key_file),
            certificate_chain=_read(self.cert_file),
        )


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def split_targets(target: str) -> tuple[str, ...]:
    """Returns the servers of "HOST:PORT,HOST:PORT", in their order, each once.

    Raises:
        ValueError: if one of them is empty.
    """
    targets = tuple(dict.fromkeys(part.strip() for part in target.split(",")))
    if not all(targets):
        raise ValueError(f"target must be HOST:PORT or several with commas between, got {target!r}")
    return targets


def call_metadata(token: str | None) -> Metadata:
    """Returns what is sent with every call. The token never appears in an error's text.

    Raises:
        ValueError: if no header can hold the token.
    """
    if token is None:
        return ()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("a token must be printable ASCII without spaces, and not empty")
    return (("authorization", f"Bearer {token}"),)
