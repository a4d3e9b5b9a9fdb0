"""Where a client connects, and what it says about itself."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.client.connection import CHANNEL_OPTIONS, Tls, call_metadata, split_targets

SETTINGS, THEIR_SETTINGS_TAKEN = (
    bytes.fromhex("000000040000000000"),
    bytes.fromhex("000000040100000000"),
)


def test_targets_are_split_at_commas_each_once() -> None:
    assert split_targets("a:1") == ("a:1",)
    assert split_targets("a:1, [::1]:2,a:1") == ("a:1", "[::1]:2")


@pytest.mark.parametrize("target", ["", "a:1,", ",a:1", "a:1,,b:2"])
def test_an_empty_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="target must be HOST:PORT"):
        split_targets(target)


def test_a_token_travels_as_a_bearer_token() -> None:
    assert call_metadata("s3cret") == (("authorization", "Bearer s3cret"),)
    assert call_metadata(None) == ()


@pytest.mark.parametrize("token", ["", "two words", "line\n", "tök"])
def test_a_token_that_no_header_holds_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(ValueError, match="a token must be") as caught:
        call_metadata(token)
    assert not token or token not in str(caught.value)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ValueError, match="needs its key"):
        Tls(cert_file=Path("cert.pem"))
    with pytest.raises(ValueError, match="needs its key"):
        Tls(key_file=Path("key.pem"))


@contextlib.contextmanager
def gone_without_a_word() -> Iterator[int]:
    """A server that takes a connection and never says anything again; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:

        def take() -> None:
            with contextlib.suppress(OSError):  # closed below
                connection = stack.enter_context(listener.accept()[0])
                connection.sendall(SETTINGS + THEIR_SETTINGS_TAKEN)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(10)


def test_a_server_that_is_gone_without_a_word_is_noticed() -> None:
    hurry = 20  # times faster
    options = [
        (name, int(value) // hurry if "keepalive" in name or "ping" in name else value)
        for name, value in CHANNEL_OPTIONS
    ]
    with (
        gone_without_a_word() as port,
        grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/test/Wait")(b"", timeout=20)
    call: Any = caught.value
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert "ping" in call.details()
