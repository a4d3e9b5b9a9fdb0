"""Opens the ports of the server, or says in one line why it cannot."""

import contextlib
import errno
import ipaddress
import resource
import socket
from dataclasses import dataclass

import grpc

# Larger than what the service parses, so that a body that is too large gets its own answer
# (INVALID_ARGUMENT) and not one that clients retry (RESOURCE_EXHAUSTED, from gRPC itself).
MAX_BODY_BYTES = 8 * 1024 * 1024

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""Under which this machine asks itself."""

MAX_METADATA_BYTES = 16 * 1024

MAX_CALLS_PER_CONNECTION = 1000
_MAX_PENDING_CALLS = 20_000
_MAX_FILES = 65_536

# Clients may ping this often; one that pings more is told to go ("too_many_pings"). The client of
# this project pings every 30 s.
MIN_CLIENT_PING_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How long connections live. Without limits, those that are half dead would stay forever.

    Args:
        max_age_seconds: then a client is asked to connect anew, which gRPC does unnoticed.
        max_age_grace_seconds: what runs on an old connection has this long to finish, so it has to
            be longer than the longest request.
        max_idle_seconds: a connection on which nothing runs for so long is closed.
        handshake_seconds: for TLS and for the first bytes of HTTP/2.
        silence_seconds: a client that says nothing for so long is pinged.
        ping_seconds: a client that does not answer a ping in this time is gone.
    """

    max_age_seconds: float = 1800.0
    max_age_grace_seconds: float = 3600.0
    max_idle_seconds: float = 900.0
    handshake_seconds: float = 20.0
    silence_seconds: float = 60.0
    ping_seconds: float = 20.0


def _options(limits: ConnectionLimits) -> list[tuple[str, int]]:
    return [
        # Two servers would otherwise share a port in silence, and each get half of the requests.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_BODY_BYTES),
        ("grpc.max_send_message_length", -1),
        # Both at one value: between them gRPC would refuse at random.
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        # Calls beyond that wait in the client until others have ended. The overload protection
        # would count calls whose client has its answer already, and refuse new ones for them.
        ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
        ("grpc.http.overload_protection", 0),
        # Calls that have arrived and not reached the event loop yet. Beyond, gRPC ends them as
        # CANCELLED, some at random; to be refused with a reason they have to get as far as us.
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        ("grpc.max_connection_age_ms", _milliseconds(limits.max_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(limits.max_age_grace_seconds)),
        ("grpc.max_connection_idle_ms", _milliseconds(limits.max_idle_seconds)),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.handshake_seconds)),
        # Finds clients that are gone without a word.
        ("grpc.keepalive_time_ms", _milliseconds(limits.silence_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(limits.ping_seconds)),
        # Without this one gRPC waits for a minute, whatever the one above says.
        ("grpc.http2.ping_timeout_ms", _milliseconds(limits.ping_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        (
            "grpc.http2.min_recv_ping_interval_without_data_ms",
            _milliseconds(MIN_CLIENT_PING_SECONDS),
        ),
    ]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


class PortError(Exception):
    """A port cannot be opened; the message is one line that says what to do."""


def open_http_port(host: str, port: int) -> socket.socket:
    """Returns a bound socket for the HTTP side; port 0 takes a free one.

    Raises:
        PortError: naming the port and the flag to change.
    """
    return _bind(host, port, "--http-port")


def open_grpc_port(
    server: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None = None,
) -> int:
    """Adds a port to the gRPC server and returns its number; port 0 takes a free one.

    Without credentials there is no TLS.

    Raises:
        PortError: naming the port and the flag to change.
    """
    # Tried with a plain socket first: gRPC itself fails with several lines of its own on stderr.
    _bind(host, port, "--port").close()
    try:
        if credentials is None:
            return server.add_insecure_port(address(host, port))
        return server.add_secure_port(address(host, port), credentials)
    except RuntimeError:
        raise PortError(_explain(host, port, "--port", "it cannot be opened")) from None


def make_grpc_server(limits: ConnectionLimits | None = None) -> grpc.aio.Server:
    """Returns a gRPC server with this project's limits, without ports and services.

    `maximum_concurrent_rpcs` is not used: it counts health checks, so that a busy server looks
    dead. The service bounds its work in images instead.
    """
    return grpc.aio.server(options=_options(limits or ConnectionLimits()))


def raise_file_limit() -> None:
    """Lets this process open as many files as it may: each connection is one.

    The usual limit of 1024 is there for programs from before poll(2), and can be raised by anybody.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # some systems have another limit below
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def address(host: str, port: int) -> str:
    """Returns HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether nobody outside of this machine can reach a port that is opened on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int, flag: str) -> socket.socket:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise PortError(f"cannot listen on host {host!r}: {error.strerror}; use --host") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        # Also a bound port on which nobody listens yet is refused to the second one.
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            text = f"cannot listen on host {host!r}: this machine has no such address; use --host"
            raise PortError(text) from None
        raise PortError(_explain(host, port, flag, _reason(error))) from None
    return listener


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _explain(host: str, port: int, flag: str, reason: str) -> str:
    return (
        f"cannot listen on {address(host, port)}: {reason}; "
        f"stop what uses it or choose another port with {flag} (0 takes a free one)"
    )
