"""docs/replicas.md on TLS: with what it says to add, both ways to and from Envoy are mutual TLS."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.client import AsyncClient, Tls, UnauthenticatedError, UnavailableError
from tests.client_harness import Certificates
from tests.envoy_process import cluster, listener, running_envoy
from tests.fakes import write_tiny_bundle
from tests.server_process import running_server

TOKEN = "a-token-0123456789"


def added(repository: Path) -> list[dict[str, Any]]:
    """What the page says to add, for the clients and for the replicas."""
    page = (repository / "docs" / "replicas.md").read_text("utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    return [block for block in blocks if "transport_socket" in block]


async def test_tls_on_both_sides_and_a_token_through_it(repository: Path, tmp_path: Path) -> None:
    server, envoy, client = (
        Certificates(tmp_path / name) for name in ("server", "envoy", "client")
    )
    files = {
        "/certs/envoy.pem": str(envoy.cert_file),
        "/certs/envoy.key": str(envoy.key_file),
        "/certs/clients-ca.pem": str(client.ca_file),
        "/certs/servers-ca.pem": str(server.ca_file),
        "exact: server": "exact: localhost",
        "sni: server": "sni: localhost",
    }
    for_clients, for_replicas = added(repository)

    def change(configuration: dict[str, Any]) -> None:
        [chain] = listener(configuration)["filter_chains"]
        chain.update(placed(for_clients))
        cluster(configuration).update(placed(for_replicas))

    def placed(block: dict[str, Any]) -> dict[str, Any]:
        text = yaml.safe_dump(block)
        for written, here in files.items():
            text = text.replace(written, here)
        loaded: dict[str, Any] = yaml.safe_load(text)
        return loaded

    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    flags: tuple[str, ...] = (
        "--tls-cert",
        str(server.cert_file),
        "--tls-key",
        str(server.key_file),
    )
    flags += ("--tls-client-ca", str(envoy.ca_file), "--auth-tokens-file", str(tokens))
    tls = Tls(envoy.ca_file, client.cert_file, client.key_file)
    with (
        running_server(write_tiny_bundle(tmp_path / "tiny"), flags=flags) as replica,
        running_envoy([replica.port], change) as proxy,
    ):
        async with AsyncClient(proxy.target, tls=tls, token=TOKEN) as known:
            assert len((await known.generate(1, 3)).images) == 3
        async with AsyncClient(proxy.target, tls=tls, retry=None) as without_token:
            with pytest.raises(UnauthenticatedError):
                await without_token.generate(1)
        stranger = Tls(envoy.ca_file)
        async with AsyncClient(proxy.target, tls=stranger, token=TOKEN, retry=None) as unknown:
            with pytest.raises(UnavailableError):
                await unknown.generate(1)
