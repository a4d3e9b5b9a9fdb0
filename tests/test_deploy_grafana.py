"""deploy/grafana: the dashboard reads what is published, and no panel is empty under load."""

import contextlib
import itertools
import json
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from serving.client import Client, ClientError
from tests.prometheus_process import PrometheusProcess, running_prometheus
from tests.server_process import REPOSITORY, ServerProcess
from tests.test_deploy_prometheus import names_in, unknown_names
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


@contextlib.contextmanager
def load(server: ServerProcess) -> Iterator[None]:
    """Requests of every kind, until the end."""
    over = threading.Event()

    def run() -> None:
        with Client(server.target, retry=None) as client:
            for number in itertools.count():
                if over.is_set():
                    return
                client.generate(number % 10, 1 + number % 7, num_steps=5)
                with contextlib.suppress(ClientError):
                    client.generate(10)
                events = client.stream(number % 10, 4, num_steps=20, preview_every=1)
                next(events)
                if number % 2:
                    events.close()
                else:
                    list(events)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def prometheus(mnist_server: ServerProcess) -> Iterator[PrometheusProcess]:
    """A Prometheus that has scraped a server under load for a while, and goes on."""
    with running_prometheus([mnist_server.http_port]) as prometheus, load(mnist_server):
        scraped = 'count_over_time(up{job="simple-diffusion"}[30s]) > 12'
        prometheus.until(lambda: prometheus.query(scraped), "a dozen scrapes")
        yield prometheus


@pytest.mark.parametrize("name", QUERIES)
def test_no_panel_is_empty_under_load(name: str, prometheus: PrometheusProcess) -> None:
    query = asked(QUERIES[name])

    def values() -> list[float]:
        return [value for _, value in prometheus.query(query) if not math.isnan(value)]

    prometheus.until(values, f"a value of {query}", 15)


def test_what_can_be_chosen_is_what_there_is(
    prometheus: PrometheusProcess, mnist_server: ServerProcess
) -> None:
    assert prometheus.ask("label/instance/values") == [f"127.0.0.1:{mnist_server.http_port}"]
    assert prometheus.ask("label/model/values") == ["mnist"]
