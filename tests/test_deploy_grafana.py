"""deploy/grafana: the dashboard reads what is published, and no panel is empty under load.

Grafana itself is not started: what it does not know of all this is looked for in its types.
"""

import copy
import itertools
import json
import math
import re
from typing import Any

import pytest
import yaml

from tests.grafana_schema import UNITS, mistakes
from tests.prometheus_process import PrometheusProcess, configuration
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
[ANNOTATION] = COMMITTED["annotations"]["list"]
CHOICES = {
    variable["name"]: variable["query"]["query"]
    for variable in COMMITTED["templating"]["list"]
    if variable["type"] == "query"
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


def test_grafana_knows_every_field_and_value() -> None:
    assert mistakes(COMMITTED) == [  # fields of Prometheus' annotations alone
        "dashboard.annotations.list[0].titleFormat: unknown",
        "dashboard.annotations.list[0].textFormat: unknown",
    ]
    assert {panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS} <= UNITS


@pytest.mark.parametrize(
    ("path", "wrong", "mistake"),
    [
        (("refreshes",), "5s", "dashboard.refreshes: unknown"),
        (("graphTooltip",), 7, "graph_tooltip: 7 is no DashboardCursorSync"),
        (("panels", 1, "kind"), "stat", "dashboard.panels[1].kind: unknown"),
        (("panels", 1, "type"), "stats", "Replicas ready: there is no panel stats"),
        (("panels", 1, "gridPos", "w"), "3", "'3' is no int"),
        (("panels", 1, "targets", 0, "query"), "up", ".targets[0].query: unknown"),
        (("panels", 1, "options", "colorMode"), "values", "'values' is no BigValueColorMode"),
        (("panels", 1, "options", "reduceOptions", "calc"), [], ".reduceOptions.calc: unknown"),
        (("panels", 1, "fieldConfig", "defaults", "units"), "s", ".defaults.units: unknown"),
        (("templating", "list", 1, "refresh"), 9, "9 is no VariableRefresh"),
    ],
)
def test_a_mistake_would_be_found(path: tuple[str | int, ...], wrong: object, mistake: str) -> None:
    changed = copy.deepcopy(COMMITTED)
    where: Any = changed
    for step in path[:-1]:
        where = where[step]
    where[path[-1]] = wrong
    assert any(mistake in each for each in mistakes(changed)), mistakes(changed)


@pytest.mark.parametrize("name", QUERIES)
def test_queries_read_series_that_are_published(name: str) -> None:
    assert names_in(QUERIES[name])
    assert not unknown_names(QUERIES[name])


def provisioned(kind: str) -> Any:
    [file] = (GRAFANA / "provisioning" / kind).glob("*.yml")
    read = yaml.safe_load(file.read_text("utf-8"))
    assert read.pop("apiVersion") == 1
    return read


def test_the_provisioned_datasource_and_folder_are_those_of_the_deployment() -> None:
    [source] = provisioned("datasources")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    [provider] = provisioned("dashboards")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_provisioning_has_no_field_that_grafanas_manual_does_not_name() -> None:
    known = {
        "datasources": {
            "name", "type", "access", "orgId", "uid", "url", "user", "database", "basicAuth",
            "basicAuthUser", "withCredentials", "isDefault", "jsonData", "secureJsonData",
            "version", "editable",
        },
        "providers": {
            "name", "orgId", "folder", "folderUid", "type", "disableDeletion",
            "updateIntervalSeconds", "allowUiUpdates", "options",
        },
    }  # fmt: skip
    for kind, what in (("datasources", "datasources"), ("dashboards", "providers")):
        [(name, [entry])] = provisioned(kind).items()
        assert name == what
        assert {"name", "type"} <= set(entry) <= known[what]
    [source] = provisioned("datasources")["datasources"]
    assert source["jsonData"] == {"timeInterval": configuration()["global"]["scrape_interval"]}


@pytest.mark.parametrize("name", QUERIES)
def test_no_panel_is_empty_under_load(name: str, prometheus_under_load: PrometheusProcess) -> None:
    query = asked(QUERIES[name])

    def values() -> list[float]:
        return [value for _, value in prometheus_under_load.query(query) if not math.isnan(value)]

    prometheus_under_load.until(values, f"a value of {query}", 15)


def test_what_can_be_chosen_is_what_there_is(
    prometheus_under_load: PrometheusProcess, mnist_server: ServerProcess
) -> None:
    chosen = {}
    for name, query in CHOICES.items():
        [(series, label)] = re.findall(r"^label_values\((.+), (\w+)\)$", query)
        chosen[name] = prometheus_under_load.ask(
            f"label/{label}/values", **{"match[]": asked(series)}
        )
    assert chosen == {"instance": [f"127.0.0.1:{mnist_server.http_port}"], "model": ["mnist"]}


def test_prometheus_answers_what_the_annotation_asks(
    prometheus_under_load: PrometheusProcess,
) -> None:
    for alert, _ in prometheus_under_load.query(ANNOTATION["expr"]):  # not an error; mostly none
        assert alert["alertstate"] == "firing"
