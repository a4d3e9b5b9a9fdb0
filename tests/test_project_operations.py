"""docs/operations.md is true: its metrics, labels, queries, alerts and flags exist."""

import math
import re
from pathlib import Path

import pytest

from serving.configuration import ServerConfig
from serving.flags import flags_of
from serving.metric_families import FAMILIES, Family
from tests.prometheus_process import PrometheusProcess
from tests.prometheus_rules import ALERTS, RULES, names_in, published_names
from tests.server_process import REPOSITORY

PAGE = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
METRIC_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\| `(diffusion|grpc_server)_\w+` \| (counter|gauge|histogram) ", line)
]
QUERIES = {row[0].strip("`"): row[4].strip("`") for row in METRIC_ROWS}


def row(family: Family) -> list[str]:
    """What stands in the row of a metric, but the query."""
    return [f"`{family.name}`", family.kind, ", ".join(family.labels), family.text]


def test_every_metric_has_its_row_and_every_row_its_metric() -> None:
    expected = [row(family) for family in FAMILIES]
    rows = "\n".join(f"| {' | '.join(cells)} | `a query` |" for cells in expected)
    assert [cells[:4] for cells in METRIC_ROWS] == expected, f"write these rows:\n{rows}"


def test_the_values_of_labels_are_those_that_are_declared() -> None:
    declared: dict[str, set[str]] = {}
    for family in FAMILIES:
        for label, values in family.labels.items():
            declared.setdefault(label, set()).update(values)
    section = PAGE.partition("| label | values |\n|---|---|\n")[2].partition("\n\n")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    known = {label: values for label, values in declared.items() if values}
    assert {label: set(values.split(", ")) for label, values in listed.items()} == known


@pytest.mark.parametrize("name", QUERIES)
def test_the_query_of_a_metric_reads_it_and_gives_something(
    name: str, prometheus_under_load: PrometheusProcess
) -> None:
    query = QUERIES[name]
    assert any(read.startswith(name) for read in names_in(query))
    short = re.sub(r"\[\d+[mh]\]", "[5s]", query)

    def values() -> list[float]:
        found = prometheus_under_load.query(short)
        return [value for _, value in found if not math.isnan(value)]

    prometheus_under_load.until(values, f"a value of {short}", 15)


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    sections = re.findall(r"^### (SimpleDiffusion\w+)$", PAGE, re.MULTILINE)
    assert sections == list(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_the_section_of_an_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    patience = f"after {alert['for']}" if "for" in alert else "at once"
    section = PAGE.partition(f"\n### {name}\n\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    assert section.startswith(f"Severity {alert['labels']['severity']}, {patience}. ")
    assert "\n1. " in section


@pytest.mark.parametrize(
    "page", sorted((REPOSITORY / "docs").glob("*.md")), ids=lambda page: page.name
)
def test_pages_name_no_metric_that_nobody_publishes(page: Path) -> None:
    code = " ".join(re.findall(r"`[^`\n]+`", page.read_text("utf-8")))
    named = set(re.findall(r"\b(?:diffusion|grpc_server)_\w+", code))
    assert named <= published_names() | {family.name for family in FAMILIES}


def test_the_page_names_no_flag_that_the_server_does_not_have() -> None:
    named = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert named == {flag.name for flag in flags_of(ServerConfig)}


def test_recorded_series_are_used_by_alerts_or_the_dashboard(repository: Path) -> None:
    used = (repository / "deploy/grafana/dashboards/simple-diffusion.json").read_text("utf-8")
    used += " ".join(alert["expr"] for alert in ALERTS.values())
    recorded = set(RULES) - set(ALERTS)
    assert {name for name in recorded if name not in used} == set()
