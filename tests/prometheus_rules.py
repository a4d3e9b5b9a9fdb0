"""The rules of deploy/prometheus, and the names of series that expressions of PromQL read."""

import re
from typing import Any

import yaml

from serving.metric_families import FAMILIES
from tests.server_process import REPOSITORY

DEPLOYED = REPOSITORY / "deploy" / "prometheus"
_OF_A_HISTOGRAM = ("_bucket", "_sum", "_count")
_OF_OTHERS = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "up",
    "ALERTS",
}


def _rules() -> dict[str, dict[str, Any]]:
    """The rules of deploy/prometheus/rules, by what they record or by the alert's name."""
    return {
        str(rule.get("record") or rule.get("alert")): rule
        for file in sorted((DEPLOYED / "rules").glob("*.yml"))
        for group in yaml.safe_load(file.read_text("utf-8"))["groups"]
        for rule in group["rules"]
    }


RULES = _rules()
ALERTS = {name: rule for name, rule in RULES.items() if "alert" in rule}


def published_names() -> set[str]:
    """Every name of a series."""
    names = {family.name for family in FAMILIES if family.kind != "histogram"}
    histograms = {family.name for family in FAMILIES if family.kind == "histogram"}
    return names | {name + suffix for name in histograms for suffix in _OF_A_HISTOGRAM}


def names_in(expression: str) -> set[str]:
    """The names of the series that an expression of PromQL reads."""
    bare = re.sub(r'"[^"]*"', "", expression)
    found = re.findall(
        r"\b(?:(?:\w+:)+\w+|(?:diffusion|grpc_server|process)_\w+|up|ALERTS)\b", bare
    )
    return set(found)


def unknown_names(expression: str) -> set[str]:
    """Those that nobody publishes and no rule records."""
    return names_in(expression) - published_names() - set(RULES) - _OF_OTHERS
