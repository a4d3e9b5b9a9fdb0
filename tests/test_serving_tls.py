"""TLS: who may connect, what is said of files that are no good, and certificates that change."""

import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import listening
from serving.health import Health, Phase, Readiness
from serving.tls import Certificates, TlsError, TlsFiles
from tests.fakes import write_tiny_bundle
from tests.server_process import run_server, running_server

Pair = tuple[bytes, bytes]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other_ca() -> trustme.CA:
    return trustme.CA()


def issue(ca: trustme.CA, name: str = "localhost") -> Pair:
    """(certificate, key), PEM."""
    leaf = ca.issue_cert(name)
    return b"".join(each.bytes() for each in leaf.cert_chain_pems), leaf.private_key_pem.bytes()


def write(directory: Path, pair: Pair, client_ca: trustme.CA | None = None) -> TlsFiles:
    files = TlsFiles(
        directory / "cert.pem",
        directory / "key.pem",
        None if client_ca is None else directory / "ca.pem",
    )
    files.cert.write_bytes(pair[0])
    files.key.write_bytes(pair[1])
    if files.client_ca is not None and client_ca is not None:
        files.client_ca.write_bytes(client_ca.cert_pem.bytes())
    return files


@contextlib.asynccontextmanager
async def serving_with(certificates: Certificates) -> AsyncIterator[int]:
    """A health service behind TLS; yields its port."""
    readiness = Readiness()
    readiness.set(Phase.SERVING)
    server = listening.make_grpc_server()
    server.add_generic_rpc_handlers((Health(readiness, []).handler(),))
    port = listening.open_grpc_port(server, "127.0.0.1", 0, certificates.credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def check(port: int, roots: trustme.CA | None, client: Pair | None = None) -> str:
    """The health that a new connection is told, or the code of its error."""
    target = f"localhost:{port}"
    # A channel of its own each time: gRPC would share a connection between equal ones.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    if roots is None:
        channel = grpc.aio.insecure_channel(target, options=options)
    else:
        cert, key = client or (None, None)
        credentials = grpc.ssl_channel_credentials(roots.cert_pem.bytes(), key, cert)
        channel = grpc.aio.secure_channel(target, credentials, options=options)
    async with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


async def test_a_client_that_trusts_the_root_is_served_and_no_other(
    tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA
) -> None:
    async with serving_with(Certificates(write(tmp_path, issue(ca)))) as port:
        assert await check(port, ca) == "SERVING"
        assert await check(port, other_ca) == "UNAVAILABLE"
        assert await check(port, None) == "UNAVAILABLE"  # no TLS at all
        assert await check(port, ca) == "SERVING"


async def test_with_a_client_ca_only_clients_with_its_certificates_are_served(
    tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA
) -> None:
    files = write(tmp_path, issue(ca), client_ca=other_ca)
    async with serving_with(Certificates(files)) as port:
        assert await check(port, ca, issue(other_ca, "client")) == "SERVING"
        assert await check(port, ca) == "UNAVAILABLE"
        assert await check(port, ca, issue(ca, "client")) == "UNAVAILABLE"


async def test_renewed_certificates_serve_the_next_connection(
    tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA
) -> None:
    seconds = [0.0]
    certificates = Certificates(write(tmp_path, issue(ca), ca), clock=lambda: seconds[0])
    async with serving_with(certificates) as port:
        assert await check(port, ca, issue(ca)) == "SERVING"
        write(tmp_path, issue(other_ca), other_ca)
        seconds[0] += 2
        assert await check(port, other_ca, issue(other_ca)) == "SERVING"
        assert await check(port, ca, issue(other_ca)) == "UNAVAILABLE"
        assert await check(port, other_ca, issue(ca)) == "UNAVAILABLE"


async def test_half_renewed_certificates_change_nothing_until_the_rest_is_there(
    tmp_path: Path,
    ca: trustme.CA,
    other_ca: trustme.CA,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seconds = [0.0]
    files = write(tmp_path, issue(ca))
    certificates = Certificates(files, clock=lambda: seconds[0])
    renewed = issue(other_ca)
    async with serving_with(certificates) as port:
        files.cert.write_bytes(renewed[0])
        for _ in range(3):
            seconds[0] += 2
            assert await check(port, ca) == "SERVING"
        warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert [str(files.key) in each.getMessage() for each in warnings] == [True]
        files.key.write_bytes(renewed[1])
        seconds[0] += 2
        assert await check(port, other_ca) == "SERVING"


def test_files_are_looked_at_once_a_second_and_read_when_they_differ(
    tmp_path: Path, ca: trustme.CA
) -> None:
    seconds = [0.0]
    certificates = Certificates(write(tmp_path, issue(ca)), clock=lambda: seconds[0])
    write(tmp_path, issue(ca))
    seconds[0] = 0.5
    assert certificates.newer() is None
    seconds[0] = 1.5
    assert certificates.newer() is not None
    seconds[0] = 3.0
    assert certificates.newer() is None
    (tmp_path / "key.pem").unlink()
    seconds[0] = 5.0
    assert certificates.newer() is None


def encrypted(key: bytes) -> bytes:
    loaded = load_pem_private_key(key, None)
    return loaded.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )


def test_files_that_are_no_good_are_named_in_one_line(
    tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA
) -> None:
    cert, key = issue(ca)
    broken = cert[:200] + b"\n-----END CERTIFICATE-----\n"
    cases: list[tuple[Pair, bytes | None, str]] = [
        ((b"", key), None, r"--tls-cert \S+cert.pem: there is no PEM certificate in it"),
        ((key, key), None, r"--tls-cert \S+cert.pem: there is no PEM certificate in it"),
        ((cert, cert), None, r"--tls-key \S+key.pem: there is no PEM private key in it"),
        ((cert, encrypted(key)), None, r"--tls-key \S+key.pem: the key is encrypted"),
        ((cert, issue(ca)[1]), None, r"--tls-key \S+ is not the key of --tls-cert \S+"),
        ((broken, key), None, r"--tls-cert \S+ and --tls-key \S+: damaged"),
        ((cert, key), b"", r"--tls-client-ca \S+ca.pem: there is no good PEM certificate"),
        ((cert, key), b"\xff", r"--tls-client-ca \S+ca.pem: there is no good PEM certificate"),
    ]
    for pair, client_ca, message in cases:
        files = write(tmp_path, pair, None if client_ca is None else other_ca)
        if files.client_ca is not None and client_ca is not None:
            files.client_ca.write_bytes(client_ca)
        with pytest.raises(TlsError, match=message) as caught:
            Certificates(files)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["cert", "key", "client_ca"])
def test_a_missing_file_is_named_with_its_flag(
    tmp_path: Path, ca: trustme.CA, missing: str
) -> None:
    files = write(tmp_path, issue(ca), client_ca=ca)
    path: Path = getattr(files, missing)
    path.unlink()
    flag = f"--tls-{missing.replace('_', '-')}"
    with pytest.raises(TlsError, match=f"^{flag} {path}: no such file or directory$"):
        Certificates(files)


@pytest.mark.parametrize("mutual", [False, True])
async def test_a_server_process_speaks_tls_and_says_why_it_cannot(
    tmp_path: Path, ca: trustme.CA, mutual: bool
) -> None:
    tiny = write_tiny_bundle(tmp_path / "tiny")
    files = write(tmp_path, issue(ca), client_ca=ca)
    flags = ["--tls-cert", str(files.cert), "--tls-key", str(files.key)]
    flags += ["--tls-client-ca", str(files.client_ca)] if mutual else []
    with running_server(tiny, flags=tuple(flags)) as server:
        assert await check(server.port, ca, issue(ca, "client")) == "SERVING"
        assert await check(server.port, ca) == ("UNAVAILABLE" if mutual else "SERVING")
        assert await check(server.port, None) == "UNAVAILABLE"
        assert "Traceback" not in server.log
        assert "PRIVATE KEY" not in server.log
    files.key.write_bytes(issue(ca)[1])
    ended = run_server(*flags, "--model", str(tiny), "--port", "0", "--http-port", "0")
    assert ended.returncode == 1
    assert f"error: --tls-key {files.key} is not the key of" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("year", [2031, 2049, 2050, 2140])
def test_when_the_certificate_ends_is_known_and_follows_a_renewal(
    year: int, ca: trustme.CA, tmp_path: Path
) -> None:
    ends = datetime(year, 5, 17, 13, 2, 59, tzinfo=UTC)
    files = write(tmp_path, issue(ca))
    now = 0.0
    certificates = Certificates(files, lambda: now)
    soon = certificates.expiry_timestamp_seconds
    assert soon > 0
    leaf = ca.issue_cert("localhost", not_after=ends)
    files.cert.write_bytes(leaf.cert_chain_pems[0].bytes())
    files.key.write_bytes(leaf.private_key_pem.bytes())
    assert certificates.expiry_timestamp_seconds == soon
    now = 2.0
    assert certificates.newer() is not None
    assert certificates.expiry_timestamp_seconds == ends.timestamp()


def test_a_server_publishes_when_its_certificate_ends(ca: trustme.CA, tmp_path: Path) -> None:
    files = write(tmp_path, issue(ca))
    flags = ("--tls-cert", str(files.cert), "--tls-key", str(files.key))
    expected = Certificates(files).expiry_timestamp_seconds
    with running_server(write_tiny_bundle(tmp_path / "tiny"), flags=flags) as server:
        assert server.metric("diffusion_certificate_expiry_timestamp_seconds") == expected
