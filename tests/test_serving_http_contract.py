"""Schemathesis holds a running server against the OpenAPI document that it gives out."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import write_tiny_bundle
from tests.server_process import environment, running_server

TOKEN = "a-token-that-is-long-enough"
FLAGS = ("--provider", "cpu", "--max-lanes", "8", "--max-images-per-request", "4")

# A caller may set a deadline of no time at all.
CONFIGURATION = """
hooks = "tests.http_contract_hooks"

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""
AUTHORISATION = f"""
[auth.openapi.token]
bearer = "{TOKEN}"
"""


@pytest.mark.parametrize("with_tokens", [False, True], ids=["open", "with tokens"])
def test_the_server_does_what_its_document_says(tmp_path: Path, with_tokens: bool) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION + (AUTHORISATION if with_tokens else ""))
    flags: tuple[str, ...] = FLAGS
    options = ["--checks", "all", "--seed", "1", "--workers", "1", "--no-color"]
    options += ["--max-examples", "10" if with_tokens else "30"]
    if with_tokens:
        tokens = tmp_path / "tokens"
        tokens.write_text(TOKEN)
        flags += ("--auth-tokens-file", str(tokens))
        # The limits are not for everybody, so they are not in the document.
        options += ["--exclude-checks", "positive_data_acceptance", "--phases", "fuzzing"]
    with running_server(bundle, flags=flags) as server:
        document = f"http://127.0.0.1:{server.http_port}/openapi.json"
        program = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration)]
        done = subprocess.run(
            [*program, "run", document, *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            env=environment(),
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 selected / 2 total" in done.stdout
        server.until_idle()
        assert server.finished("HttpGenerate", "OK") > 0
        assert "Traceback" not in server.log
