"""With a file of tokens, only who has one is answered, and no token is shown anywhere."""

import logging
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import server as server_module
from serving import tokens as tokens_module
from serving.configuration import ServerConfig
from serving.refusal import RefusedError
from serving.tokens import Tokens, TokensError
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.edge_harness import running_edge
from tests.fakes import write_tiny_bundle
from tests.server_process import run_server, running_server

FIRST, SECOND = "first-token-0123456789", "second.token/0123456789=="


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"# who: the first\n{FIRST}\n\n  {SECOND}  \n")
    return file


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("authorization", f"Bearer {token}")]


def accepts(tokens: Tokens, metadata: list[tuple[str, str | bytes]] | None) -> bool:
    try:
        tokens.require(metadata)
    except RefusedError as refused:
        assert refused.code is grpc.StatusCode.UNAUTHENTICATED
        return False
    return True


def test_each_token_of_the_file_is_accepted_and_nothing_else(path: Path) -> None:
    tokens = Tokens(path)
    assert accepts(tokens, bearer(FIRST))
    assert accepts(tokens, bearer(SECOND))
    assert accepts(tokens, [("authorization", f"bearer   {FIRST}"), ("other", "x")])
    for metadata in (
        None,
        [],
        bearer(""),
        bearer(FIRST[:-1]),
        bearer(FIRST + "x"),
        bearer("# who: the first"),
        [("authorization", FIRST)],
        [("authorization", f"Basic {FIRST}")],
        [("authorization", f"Bearer {FIRST}".encode())],
        [("x-authorization", f"Bearer {FIRST}")],
        bearer(FIRST) + bearer(FIRST),
    ):
        assert not accepts(tokens, metadata), metadata


def test_every_token_is_compared_whichever_one_fits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    tokens = Tokens(path)
    monkeypatch.setattr(tokens_module, "hmac", _Comparing(compared))
    for token in (FIRST, SECOND, "neither-of-these-two"):
        compared.clear()
        accepts(tokens, bearer(token))
        assert compared == [32, 32]


class _Comparing:
    """Stands in for the module hmac and notes what is compared."""

    def __init__(self, compared: list[int]) -> None:
        self._compared = compared

    def compare_digest(self, one: bytes, other: bytes) -> bool:
        self._compared.append(len(one))
        return one == other


def test_a_changed_file_counts_within_a_second(path: Path) -> None:
    seconds = [0.0]
    tokens = Tokens(path, clock=lambda: seconds[0])
    path.write_text("third-token-0123456789\n")
    seconds[0] = 1.0
    assert accepts(tokens, bearer("third-token-0123456789"))
    assert not accepts(tokens, bearer(FIRST))


@pytest.mark.parametrize("content", [None, "", "# nothing\n", "short\n", "with a space in it\n"])
def test_a_file_that_becomes_no_good_changes_nothing_and_is_logged_without_its_content(
    path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    seconds = [0.0]
    tokens = Tokens(path, clock=lambda: seconds[0])
    path.unlink() if content is None else path.write_text(content)
    seconds[0] = 1.0
    assert accepts(tokens, bearer(FIRST))
    [line] = caplog.messages
    assert str(path) in line
    assert "short" not in line
    assert "space in it" not in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no token in it"),
        (f"{FIRST}\nshort\n".encode(), "line 2 is not a token, which is 16 to 512 visible"),
        (b"x" * 513, "line 1 is not a token"),
        (b"\xff\xfe\x00", "this is not a text file"),
    ],
)
def test_a_file_without_good_tokens_is_refused_in_one_line(
    path: Path, content: bytes, message: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(TokensError, match=f"^--auth-tokens-file {path}: {message}") as caught:
        Tokens(path)
    assert "\n" not in str(caught.value)
    assert "short" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokensError, match="no such file or directory"):
        Tokens(tmp_path / "nothing")


async def code(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        assert FIRST not in str(error.details())
        return str(error.code().name)
    return "OK"


async def test_every_method_needs_a_token_and_health_does_not(path: Path) -> None:
    asked = pb.GenerateRequest(label=1)
    async with running_edge(tokens=Tokens(path)) as edge:
        calls = (
            lambda metadata: edge.stub.Generate(asked, metadata=metadata),
            lambda metadata: edge.stub.GenerateStream(asked, metadata=metadata).read(),
            lambda metadata: edge.stub.ListModels(pb.ListModelsRequest(), metadata=metadata),
        )
        for call in calls:
            assert await code(call(bearer(FIRST))) == "OK"
            assert await code(call(bearer(FIRST + "x"))) == "UNAUTHENTICATED"
            assert await code(call(None)) == "UNAUTHENTICATED"
        health = health_pb2_grpc.HealthStub(edge.channel)
        assert await code(health.Check(health_pb2.HealthCheckRequest())) == "OK"
        refused = edge.metrics.value("diffusion_requests_refused_total", reason="unauthenticated")
        assert refused == 6
        assert edge.finished("Generate", "UNAUTHENTICATED") == 2


async def test_who_has_no_token_is_not_told_what_is_wrong_with_the_request(path: Path) -> None:
    async with running_edge(tokens=Tokens(path)) as edge:
        assert await code(edge.stub.Generate(pb.GenerateRequest(label=99))) == "UNAUTHENTICATED"
        assert await code(edge.raw("Generate", b"\xff")) == "UNAUTHENTICATED"


def accepted(method: Any, token: str) -> bool:
    try:
        method(b"", metadata=bearer(token))
    except grpc.RpcError as error:
        call: Any = error  # every error of a call is the call itself
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        return False
    return True


def test_a_server_process_asks_for_tokens_and_shows_none(tmp_path: Path, path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "tiny")
    flags = ("--auth-tokens-file", str(path), "--log-level", "debug")
    with (
        running_server(tiny, flags=flags) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        models = channel.unary_unary("/simple_diffusion.v1.DiffusionService/ListModels")
        assert accepted(models, FIRST)
        assert not accepted(models, "wrong-token-0123456789")
        new = "another-token-0123456789"
        path.write_text(f"{new}\n")
        end_seconds = time.monotonic() + 20
        while not accepted(models, new):
            assert time.monotonic() < end_seconds, "the file was not read again"
            time.sleep(0.1)
        assert not accepted(models, FIRST)
        assert str(path) in server.log
        assert "0123456789" not in server.log
        assert "WARNING" not in server.log
    path.write_text("")
    ended = run_server(*flags, "--model", str(tiny), "--port", "0", "--http-port", "0")
    assert ended.returncode == 1
    assert f"error: --auth-tokens-file {path}: there is no token in it" in ended.stderr


@pytest.mark.parametrize(
    ("host", "tls", "http_api", "warned"),
    [
        ("127.0.0.1", False, "on", False),
        ("::1", False, "on", False),
        ("localhost", False, "on", False),
        ("0.0.0.0", False, "off", True),
        ("example.org", False, "off", True),
        ("0.0.0.0", True, "on", True),
        ("0.0.0.0", True, "off", False),
    ],
)
async def test_tokens_that_others_could_read_on_the_way_are_warned_of(
    path: Path, caplog: pytest.LogCaptureFixture, host: str, tls: bool, http_api: str, warned: bool
) -> None:
    files = {"tls_cert": path, "tls_key": path} if tls else {}
    with caplog.at_level(logging.WARNING):
        config = ServerConfig(host=host, auth_tokens_file=path, http_api=http_api, **files)
        server_module.Server(config)
    assert bool([line for line in caplog.messages if "without TLS" in line]) is warned
