"""TLS and mutual TLS for the gRPC port: PEM files that are read again when they change.

gRPC asks for the certificates at each handshake, so a renewed certificate is used from the next
connection on; connections that are open keep the one they have.
"""

import logging
import math
import os
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from serving.watched_files import WatchedFiles

_CERTIFICATE = re.compile(rb"-----BEGIN (TRUSTED |X509 )?CERTIFICATE-----")
_KEY = re.compile(rb"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----")
_ENCRYPTED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|\nProc-Type: 4,ENCRYPTED")

# In a certificate, DER: a SEQUENCE of two times, each with two digits of the year or with four.
_TIME = rb"(?:\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)"
_VALIDITY = re.compile(rb"\x30[\x1e\x20\x22]" + _TIME + rb"(" + _TIME + rb")")

_log = logging.getLogger(__name__)


class TlsError(Exception):
    """Files that no TLS can be done with; one line that names the flag and the file."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files are.

    Args:
        cert: the server's certificate, followed by those that lead to its root.
        key: its private key, not encrypted.
        client_ca: roots of the clients' certificates; None asks clients for none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files there are."""
        return (self.cert, self.key, *([self.client_ca] if self.client_ca else []))


@dataclass(frozen=True, slots=True)
class _Pems:
    cert: bytes
    key: bytes
    client_ca: bytes | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], self.client_ca)


class Certificates:
    """The certificates of a server. Asked on threads of gRPC's core.

    Args:
        files: read now, and again when one of them changes.
        clock: seconds, monotonic.

    Raises:
        TlsError: if the files are missing, no PEM, encrypted, or do not belong together.
    """

    def __init__(self, files: TlsFiles, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._watched = WatchedFiles(*files.paths, clock=clock)
        self._pems = _read(files)

    @property
    def expiry_timestamp_seconds(self) -> float:
        """When the server's certificate ends, in Unix time; NaN for one that is not understood."""
        return _expiry_timestamp_seconds(self._pems.cert)

    def credentials(self) -> grpc.ServerCredentials:
        """Returns what a secure port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            self._pems.configuration(),
            self.newer,  # type: ignore[arg-type]  # None is documented: keep what there is
            require_client_authentication=self._files.client_ca is not None,
        )

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the certificates if they have changed since the last call, else None.

        Files that are not good, perhaps because only some have been renewed yet, are logged once;
        the certificates from before stay in use.
        """
        if not self._watched.changed():
            return None
        try:
            pems = _read(self._files)
        except TlsError as error:
            _log.warning("the certificates stay as they were: %s", error)
            return None
        self._pems = pems
        _log.info("new certificates from %s", self._files.cert)
        return pems.configuration()


def _expiry_timestamp_seconds(chain: bytes) -> float:
    first = chain[: chain.find(b"-----END") + len("-----END CERTIFICATE-----")].decode("ascii")
    try:
        der = ssl.PEM_cert_to_DER_cert(first[first.index("-----BEGIN") :])
    except ValueError:  # one with trust settings of OpenSSL's
        return math.nan
    validity = _VALIDITY.search(der)
    if validity is None:
        return math.nan
    until = validity[1][2:].decode("ascii")
    form = "%y%m%d%H%M%SZ" if len(until) == len("YYMMDDhhmmssZ") else "%Y%m%d%H%M%SZ"
    return datetime.strptime(until, form).replace(tzinfo=UTC).timestamp()


def _read(files: TlsFiles) -> _Pems:
    pems = _Pems(
        _bytes("--tls-cert", files.cert),
        _bytes("--tls-key", files.key),
        None if files.client_ca is None else _bytes("--tls-client-ca", files.client_ca),
    )
    if not _CERTIFICATE.search(pems.cert):
        raise TlsError(f"--tls-cert {files.cert}: there is no PEM certificate in it")
    if _ENCRYPTED.search(pems.key):
        raise TlsError(f"--tls-key {files.key}: the key is encrypted; give one that is not")
    if not _KEY.search(pems.key):
        raise TlsError(f"--tls-key {files.key}: there is no PEM private key in it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise TlsError(
                f"--tls-key {files.key} is not the key of --tls-cert {files.cert}"
            ) from None
        raise TlsError(
            f"--tls-cert {files.cert} and --tls-key {files.key}: damaged, or of a kind that is"
            " not supported"
        ) from None
    if pems.client_ca is not None:
        _check_roots(context, files.client_ca, pems.client_ca)
    return pems


def _check_roots(context: ssl.SSLContext, path: Path | None, pem: bytes) -> None:
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise TlsError(f"--tls-client-ca {path}: there is no good PEM certificate in it") from None


def _bytes(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{flag} {path}: {os.strerror(error.errno or 0).lower()}") from None
