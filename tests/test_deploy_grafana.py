"""deploy/grafana: the dashboard reads what is published, and no panel is empty under load."""

import itertools
import json
import math
from typing import Any

import pytest
import yaml

from tests.prometheus_process import PrometheusProcess
from tests.prometheus_rules import names_in, unknown_names
from tests.server_process import REPOSITORY, ServerProcess
from tools import dashboard

GRAFANA = REPOSITORY / "deploy" / "grafana"
COMMITTED: dict[str, Any] = json.loads(dashboard.DASHBOARD.read_text("utf-8"))
PANELS = [panel for panel in COMMITTED["panels"] if panel["type"] != "row"]
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel["targets"]
}
QUESTIONS = ["Is it up?", "Is it fast?", "Is it full?", "Is it right?", "What is it drawing?"]


def asked(query: str) -> str:
    """A query as Grafana asks it, with everything chosen."""
    for variable, value in (
        ("$__rate_interval", "5s"),
        ("$__range", "30s"),
        ("$instance", ".*"),
        ("$model", ".*"),
    ):
        query = query.replace(variable, value)
    assert "$" not in query
    return query


def test_the_file_is_what_its_tables_say() -> None:
    assert dashboard.DASHBOARD.read_text("utf-8") == dashboard.text(), "run: make dashboard"


def test_it_answers_the_questions_from_top_to_bottom() -> None:
    rows = [panel for panel in COMMITTED["panels"] if panel["type"] == "row"]
    assert [row["title"] for row in rows] == QUESTIONS
    assert [row["gridPos"]["y"] for row in rows] == sorted(row["gridPos"]["y"] for row in rows)


def test_panels_stand_beside_each_other_and_have_different_names() -> None:
    for one, other in itertools.combinations(COMMITTED["panels"], 2):
        assert one["title"] != other["title"]
        assert one["id"] != other["id"]
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (one["title"], other["title"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in COMMITTED["panels"])


@pytest.mark.parametrize("name", QUERIES)
def test_queries_read_series_that_are_published(name: str) -> None:
    assert names_in(QUERIES[name])
    assert not unknown_names(QUERIES[name])


def test_the_provisioned_datasource_and_folder_are_those_of_the_deployment() -> None:
    def provisioned(kind: str) -> Any:
        [file] = (GRAFANA / "provisioning" / kind).glob("*.yml")
        return yaml.safe_load(file.read_text("utf-8"))

    [source] = provisioned("datasources")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    [provider] = provisioned("dashboards")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


@pytest.mark.parametrize("name", QUERIES)
def test_no_panel_is_empty_under_load(name: str, prometheus_under_load: PrometheusProcess) -> None:
    query = asked(QUERIES[name])

    def values() -> list[float]:
        return [value for _, value in prometheus_under_load.query(query) if not math.isnan(value)]

    prometheus_under_load.until(values, f"a value of {query}", 15)


def test_what_can_be_chosen_is_what_there_is(
    prometheus_under_load: PrometheusProcess, mnist_server: ServerProcess
) -> None:
    assert prometheus_under_load.ask("label/instance/values") == [
        f"127.0.0.1:{mnist_server.http_port}"
    ]
    assert prometheus_under_load.ask("label/model/values") == ["mnist"]
