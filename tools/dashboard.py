"""Writes the Grafana dashboard: deploy/grafana/dashboards/simple-diffusion.json.

    PYTHONPATH=. python tools/dashboard.py

What it shows stands in tools/dashboard_panels.py: change that, not the file and not Grafana.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.dashboard_panels import ROWS, Panel

DASHBOARD = Path(__file__).parent.parent / "deploy/grafana/dashboards/simple-diffusion.json"

_COLUMNS = 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

# What is chosen at the top of the page.
_SERVER = 'job="simple-diffusion", instance=~"$instance"'
_MODEL = f'{_SERVER}, model=~"$model"'


def dashboard() -> dict[str, Any]:
    """Returns the dashboard as Grafana reads it."""
    return {
        "uid": "simple-diffusion",
        "title": "simple-diffusion",
        "description": "Is it up, is it fast, is it full, is it right, what is it drawing?",
        "tags": ["simple-diffusion"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(_variables())},
        "annotations": {"list": [_firing_alerts()]},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }
    for name, query in (
        ("instance", 'label_values(up{job="simple-diffusion"}, instance)'),
        ("model", 'label_values(diffusion_lanes_capacity{instance=~"$instance"}, model)'),
    ):
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }


def _firing_alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": _DATASOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}} {{model}}",
    }


def _panels() -> Iterator[dict[str, Any]]:
    number_, y = 0, 0
    for title, panels in ROWS.items():
        number_ += 1
        place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        yield {"id": number_, "type": "row", "title": title, "collapsed": False, "gridPos": place}
        x, y, tallest = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > _COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            number_ += 1
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            yield {"id": number_, "gridPos": place, **_panel(panel)}
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest


def _panel(panel: Panel) -> dict[str, Any]:
    instant = panel.kind in {"stat", "table", "bargauge"}
    targets = [
        {
            "refId": chr(ord("A") + place),
            "expr": query.replace("<server>", _SERVER).replace("<model>", _MODEL),
            "legendFormat": legend or "__auto",
            "instant": instant,
            "range": not instant,
            "format": "table" if panel.kind == "table" else "time_series",
        }
        for place, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        **_look(panel),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in panel.colours],
        },
        "color": {"mode": "thresholds" if len(panel.colours) > 1 else "palette-classic"},
    }
    if panel.kind in {"stat", "bargauge"} and panel.unit == "short":
        defaults["decimals"] = 0  # increase() gives fractions of what is counted
    if panel.words:
        defaults["mappings"] = [{"type": "value", "options": panel.words}]
    if panel.kind == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "showPoints": "never",
        }
    return defaults


def _look(panel: Panel) -> dict[str, Any]:
    """What depends on the kind of panel alone."""
    latest = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match panel.kind:
        case "stat":
            return {"options": {"reduceOptions": latest, "colorMode": "value", "graphMode": "none"}}
        case "bargauge":
            return {"options": {"reduceOptions": latest, "orientation": "horizontal"}}
        case "table":
            hidden = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
            return {
                "transformations": [{"id": "organize", "options": {"excludeByName": hidden}}],
                "options": {"showHeader": True},
            }
        case "state-timeline":
            return {"options": {"showValue": "never", "mergeValues": True}}
        case _:
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
            return {"options": {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}}


def text() -> str:
    """Returns what stands in the file."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text(), encoding="utf-8")
    print(f"wrote {DASHBOARD}")
