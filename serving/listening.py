"""Opens the ports of the server, or says in one line why it cannot."""

import ipaddress
import socket

import grpc

# Longer than the longest legal request: a connection that is too old is closed only after what
# runs on it is finished. Without an age, connections that are half dead would stay forever.
_CONNECTION_AGE_MILLISECONDS = 30 * 60 * 1000
_CONNECTION_AGE_GRACE_MILLISECONDS = 60 * 60 * 1000

_OPTIONS = (
    # Two servers would otherwise share a port in silence, and each get half of the requests.
    ("grpc.so_reuseport", 0),
    # Larger than what the service parses, so that a body that is too large gets its own answer
    # (INVALID_ARGUMENT) and not one that clients retry (RESOURCE_EXHAUSTED).
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_connection_age_ms", _CONNECTION_AGE_MILLISECONDS),
    ("grpc.max_connection_age_grace_ms", _CONNECTION_AGE_GRACE_MILLISECONDS),
    # Finds clients that are gone without a word.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # How often clients may ping; the client of this project does it every 30 s.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


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


def make_grpc_server() -> grpc.aio.Server:
    """Returns a gRPC server with this project's limits, without ports and services.

    `maximum_concurrent_rpcs` is not used: it counts health checks, so that a busy server looks
    dead. The service bounds its work in images instead.
    """
    return grpc.aio.server(options=_OPTIONS)


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
        raise PortError(_explain(host, port, flag, _reason(error))) from None
    return listener


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _explain(host: str, port: int, flag: str, reason: str) -> str:
    return (
        f"cannot listen on {address(host, port)}: {reason}; "
        f"stop what uses it or choose another port with {flag} (0 takes a free one)"
    )
