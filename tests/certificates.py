"""Certificates that live for a day, made for one test."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A certificate that signs itself, for localhost and 127.0.0.1, and its key, both PEM."""

    cert_file: Path
    key_file: Path


def make_certificate(directory: Path, name: str) -> Certificate:
    """Writes NAME.pem and NAME.key into the directory."""
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", f"/CN={name}",
            "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", str(made.key_file), "-out", str(made.cert_file),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return made
