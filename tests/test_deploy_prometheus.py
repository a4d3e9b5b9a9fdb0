"""deploy/prometheus: what promtool says of it, and that it knows the metrics that there are."""

from pathlib import Path

import pytest
import yaml

from tests import envoy_process
from tests.prometheus_process import configuration, promtool
from tests.prometheus_rules import ALERTS, DEPLOYED, RULES, names_in, unknown_names
from tests.server_process import ServerProcess

UNIT_TESTS = DEPLOYED / "tests" / "rules.yml"


def test_the_configuration_is_valid() -> None:
    checked = promtool("check", "config", str(DEPLOYED / "prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for rule_file in (DEPLOYED / "rules").glob("*.yml"):
        checked = promtool("check", "rules", "--lint-fatal", str(rule_file))
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_unit_tests_of_the_rules_pass() -> None:
    tested = promtool("test", "rules", str(UNIT_TESTS))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_metrics_are_well_formed(mnist_server: ServerProcess) -> None:
    checked = promtool("check", "metrics", stdin=mnist_server.get("/metrics")[1])
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_every_replica_is_scraped_and_envoy_too() -> None:
    found = {
        job["job_name"]: [(each["names"], each["type"], each["port"]) for each in discoveries]
        for job in configuration()["scrape_configs"]
        if (discoveries := job.get("dns_sd_configs"))
    }
    [listener] = [
        each
        for each in envoy_process.configuration()["static_resources"]["listeners"]
        if each["name"] == "metrics"
    ]
    envoy_port = listener["address"]["socket_address"]["port_value"]
    assert found == {
        "simple-diffusion": [(["server"], "A", 8080)],
        "envoy": [(["envoy"], "A", envoy_port)],
    }


@pytest.mark.parametrize("name", RULES)
def test_rules_read_series_that_are_published(name: str) -> None:
    assert names_in(RULES[name]["expr"])
    assert not unknown_names(RULES[name]["expr"])


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_happened_and_where_it_stands_what_to_do(
    name: str, repository: Path
) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_tried_by_a_unit_test_and_every_alert_that_it_stays_silent(name: str) -> None:
    tests = yaml.safe_load(UNIT_TESTS.read_text("utf-8"))["tests"]
    if name not in ALERTS:
        asked = [case["expr"] for test in tests for case in test.get("promql_expr_test", [])]
        read = " ".join([*asked, *(alert["expr"] for alert in ALERTS.values())])
        assert name in names_in(read)
        return
    cases = [
        bool(case["exp_alerts"])
        for test in tests
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == name
    ]
    assert set(cases) == {True, False}


def test_a_name_that_nobody_publishes_is_noticed() -> None:
    assert unknown_names("rate(diffusion_image_total[1m]) / up") == {"diffusion_image_total"}
    assert unknown_names('job:x:y{a="diffusion_nonsense"}') == {"job:x:y"}
