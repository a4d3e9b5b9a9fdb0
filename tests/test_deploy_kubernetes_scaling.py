"""deploy/kubernetes: how many replicas KEDA would ask for, by its queries to Prometheus."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes_build import build
from tests.prometheus_process import promtool

LANES = 32


def series(name: str, pod: str, value: float, model: str = "mnist") -> dict[str, str]:
    """A gauge that has had this value for two minutes."""
    labels = f'model="{model}", namespace="digits", pod="{pod}", service="simple-diffusion"'
    return {"series": f"{name}{{{labels}}}", "values": f"{value}x8"}


def replica(
    pod: str, *, waiting: int = 0, lanes_in_use: int = 0, model: str = "mnist"
) -> list[dict[str, str]]:
    """What Prometheus knows of one model of one replica."""
    return [
        series("diffusion_images_waiting", pod, waiting, model),
        series("diffusion_lanes_in_use", pod, lanes_in_use, model),
        series("diffusion_lanes_capacity", pod, LANES, model),
    ]


CASES = {
    "three idle ones": ([replica(pod) for pod in "abc"], 0, 0),
    "three full ones, nothing waits": (
        [replica(pod, lanes_in_use=LANES) for pod in "abc"],
        0,
        math.ceil(3 / 0.7),
    ),
    "three at half": ([replica(pod, lanes_in_use=LANES // 2) for pod in "abc"], 0, 3),
    "three with a queue": (
        [replica(pod, waiting=300, lanes_in_use=LANES) for pod in "abc"],
        math.ceil(900 / 200),
        math.ceil(3 / 0.7),
    ),
    "two models take turns": (
        [
            replica("a", lanes_in_use=LANES),
            replica("a", lanes_in_use=LANES, model="fashion"),
            replica("b", waiting=50, model="fashion"),
        ],
        1,
        math.ceil(1 / 0.7),
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_the_number_of_replicas_follows_the_work(case: str, tmp_path: Path) -> None:
    replicas, for_waiting, for_lanes = CASES[case]
    triggers = build("overlays/scaled")["ScaledObject"]["spec"]["triggers"]
    expected = {"images-waiting": for_waiting, "lanes-in-use": for_lanes}
    # KEDA's AverageValue: the value of the query / the threshold, rounded up.
    asks = [
        {
            "expr": f"ceil(({trigger['metadata']['query']}) / {trigger['metadata']['threshold']})",
            "eval_time": "2m",
            "exp_samples": [{"labels": "{}", "value": expected.pop(trigger["name"])}],
        }
        for trigger in triggers
    ]
    assert not expected
    known = [each for one in replicas for each in one]
    result = unit_test(
        tmp_path, {"interval": "15s", "input_series": known, "promql_expr_test": asks}
    )
    assert result.returncode == 0, result.stdout + result.stderr


def unit_test(directory: Path, test: dict[str, Any]) -> Any:
    file = directory / "test.json"  # which is YAML too
    file.write_text(json.dumps({"evaluation_interval": "15s", "tests": [test]}))
    return promtool("test", "rules", str(file))
