"""deploy/envoy: Envoy takes the configuration, and its times and limits fit those of the server."""

from pathlib import Path

from serving.configuration import ServerConfig
from serving.grpc_methods import SERVICE_NAME
from serving.listening import MAX_CALLS_PER_CONNECTION, MAX_METADATA_BYTES, MIN_CLIENT_PING_SECONDS
from tests.envoy_process import CONFIGURATION, cluster, configuration, connection_manager, validate

HTTP2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def test_envoy_itself_finds_nothing_wrong_with_the_configuration() -> None:
    done = validate(CONFIGURATION)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "deprecated, probably"


def test_a_mistake_in_the_configuration_would_be_found(tmp_path: Path) -> None:
    file = tmp_path / "envoy.yaml"
    file.write_text(CONFIGURATION.read_text().replace("retry_budget", "retry_budgets"))
    done = validate(file)
    assert done.returncode != 0
    assert "retry_budgets" in done.stderr


def test_the_times_fit_those_of_the_server() -> None:
    server = ServerConfig()
    manager, replicas = connection_manager(configuration()), cluster(configuration())
    assert seconds(manager["stream_idle_timeout"]) > server.request_timeout_seconds
    [check] = replicas["health_checks"]
    # The check that fails may begin just before the grace does, and the one after it counts.
    noticed_seconds = 2 * seconds(check["interval"])
    assert noticed_seconds <= server.drain_grace_seconds
    assert check["no_traffic_interval"] == check["interval"]
    upstream = replicas["typed_extension_protocol_options"][HTTP2]
    http2 = upstream["explicit_http_config"]["http2_protocol_options"]
    assert seconds(http2["connection_keepalive"]["interval"]) >= MIN_CLIENT_PING_SECONDS


def test_the_limits_fit_those_of_the_server() -> None:
    manager, replicas = connection_manager(configuration()), cluster(configuration())
    upstream = replicas["typed_extension_protocol_options"][HTTP2]
    http2 = upstream["explicit_http_config"]["http2_protocol_options"]
    assert http2["max_concurrent_streams"] == MAX_CALLS_PER_CONNECTION
    assert manager["max_request_headers_kb"] * 1024 == MAX_METADATA_BYTES
    [thresholds] = replicas["circuit_breakers"]["thresholds"]
    # Several replicas' queues: it is they who refuse, with the time to come back.
    assert thresholds["max_requests"] > 8 * ServerConfig().max_queued_requests


def test_what_is_asked_for_health_is_readiness() -> None:
    [check] = cluster(configuration())["health_checks"]
    assert check["grpc_health_check"] == {"service_name": SERVICE_NAME}


def test_only_this_machine_reaches_the_administration() -> None:
    assert configuration()["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
