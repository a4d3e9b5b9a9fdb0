"""What the server can be told: contradictions are refused, and the page that lists it is true."""

import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from serving import __main__ as command
from serving import logs
from serving.configuration import ServerConfig
from serving.flags import ConfigurationError, Flag, flags_of


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        (
            {"max_images_per_request": 10, "max_queued_images": 9},
            ("--max-images-per-request 10", "--max-queued-images 9"),
        ),
        (
            {"request_timeout_seconds": 60.0, "max_connection_age_grace_seconds": 60.0},
            ("--request-timeout-seconds 60", "--max-connection-age-grace-seconds 60"),
        ),
        ({"tracing_endpoint": "localhost:4317"}, ("--tracing-endpoint",)),
        ({"tracing_endpoint": "http://me:secret@host:4317"}, ("--tracing-endpoint",)),
        ({"tls_cert": Path("c")}, ("--tls-cert", "--tls-key")),
        ({"tls_key": Path("k")}, ("--tls-cert", "--tls-key")),
        ({"tls_client_ca": Path("a")}, ("--tls-client-ca", "--tls-cert", "--tls-key")),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(
    settings: dict[str, object], flags: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ServerConfig(**settings)
    assert all(flag in str(caught.value) for flag in flags)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "has_one"),
    [
        ({}, True),
        ({"auth_tokens_file": Path("t")}, True),
        ({"tls_client_ca": Path("a")}, False),
        ({"tls_client_ca": Path("a"), "auth_tokens_file": Path("t")}, True),
        ({"tls_client_ca": Path("a"), "http_api": "on"}, True),
        ({"http_api": "off"}, False),
    ],
)
def test_who_has_to_show_a_certificate_over_grpc_is_not_let_in_over_http_without(
    settings: dict[str, object], has_one: bool
) -> None:
    files = {"tls_cert": Path("c"), "tls_key": Path("k")}
    assert ServerConfig(**files, **settings).has_http_api is has_one


@pytest.mark.parametrize(
    ("settings", "hosts"),
    [
        ({}, {"localhost", "127.0.0.1", "::1"}),
        ({"host": "0.0.0.0"}, None),
        ({"host": "::"}, None),
        (
            {"host": "0.0.0.0", "http_host_names": ("Digits.example",)},
            {"localhost", "127.0.0.1", "::1", "0.0.0.0", "digits.example"},
        ),
    ],
)
def test_only_names_of_this_machine_lead_to_a_server_that_is_for_this_machine(
    settings: dict[str, object], hosts: set[str] | None
) -> None:
    assert ServerConfig(**settings).http_hosts == hosts


def test_the_resolved_configuration_is_logged_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(config: ServerConfig) -> int:
        assert config == ServerConfig(port=7, max_lanes=5)
        return 0

    monkeypatch.setattr(command, "serve", serve)
    monkeypatch.setattr(logs, "set_up", lambda *_: None)  # here pytest reads the log
    monkeypatch.setenv("SIMPLE_DIFFUSION_PORT", "7")
    with caplog.at_level(logging.INFO):
        ended = CliRunner().invoke(command.main, ["--max-lanes", "5"])
    assert ended.exit_code == 0
    [line] = [text for text in caplog.messages if text.startswith("configuration: ")]
    assert "--port 7 " in line
    assert "--max-lanes 5 " in line
    assert "--max-queued-images 4096 " in line


def table_row(flag: Flag) -> str:
    """The row of docs/operations.md for a flag."""
    values = "" if flag.kind is None else _values(flag.kind)
    default = "" if flag.default is None or flag.switch else _text(flag.default)
    return f"| `{flag.name}` | {values} | {default} | {flag.text} |"


def _values(kind: Any) -> str:
    if (choices := getattr(kind, "choices", None)) is not None:
        return ", ".join(choices)
    if hasattr(kind, "min"):
        return f"{kind.min:,} .. {kind.max:,}"
    return "path"


def _text(default: object) -> str:
    if isinstance(default, tuple):
        return " ".join(str(each) for each in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_the_operations_page_lists_every_flag_as_it_is(repository: Path) -> None:
    page = (repository / "docs" / "operations.md").read_text()
    listed = [line for line in page.splitlines() if line.startswith("| `--")]
    expected = [table_row(flag) for flag in flags_of(ServerConfig)]
    assert listed == expected, "write these rows:\n" + "\n".join(expected)
