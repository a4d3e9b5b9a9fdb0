"""What a failed call means, where gRPC's own word for it is another one."""

from typing import Any

import grpc

from serving.client import CallCancelledError, InternalError, UnavailableError
from serving.client.errors import from_rpc_error


class Failed(grpc.RpcError):
    """A call that failed."""

    def __init__(self, code: grpc.StatusCode, details: str, **metadata: str) -> None:
        super().__init__()
        self._code, self._details, self._metadata = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return tuple((key.replace("_", "-"), value) for key, value in self._metadata.items())


RESET = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"


def test_a_stream_whose_server_dies_behind_a_proxy_may_be_asked_for_again() -> None:
    error = from_rpc_error(Failed(grpc.StatusCode.INTERNAL, RESET), "proxy:1")
    assert isinstance(error, UnavailableError)
    assert error.code == "UNAVAILABLE"
    assert str(error) == "the server behind proxy:1 stopped before the answer was complete"


def test_what_a_server_calls_internal_stays_internal() -> None:
    for details, metadata in ((RESET, {"x_request_id": "7"}), ("the server failed", {})):
        error = from_rpc_error(Failed(grpc.StatusCode.INTERNAL, details, **metadata), "proxy:1")
        assert isinstance(error, InternalError)
        assert error.code == "INTERNAL"


def test_a_call_that_reaches_a_server_as_it_stops_may_be_made_again() -> None:
    error = from_rpc_error(Failed(grpc.StatusCode.CANCELLED, "CANCELLED"), "host:1")
    assert isinstance(error, UnavailableError)
    assert str(error) == "the server at host:1 has stopped"


def test_a_call_that_was_cancelled_on_purpose_is_not_made_again() -> None:
    for details, metadata in (("Channel closed!", {}), ("CANCELLED", {"x_request_id": "7"})):
        error = from_rpc_error(Failed(grpc.StatusCode.CANCELLED, details, **metadata), "host:1")
        assert isinstance(error, CallCancelledError)
