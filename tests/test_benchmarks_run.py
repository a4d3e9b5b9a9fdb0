"""Each benchmark runs from its command to its section of the page, in its quickest form."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import limit
from benchmarks.peers import __main__ as peers_command
from benchmarks.peers.processes import OURS, PEERS
from benchmarks.peers.workloads import QUICK
from benchmarks.report.__main__ import compose
from tests.server_process import ServerProcess


def run(repository: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_load_on_a_server_leaves_a_summary_a_csv_and_a_plot(
    repository: Path, mnist_server: ServerProcess, tmp_path: Path
) -> None:
    said = run(
        repository, "benchmarks.load", "--quick", "--target", mnist_server.target,
        "--rate", "10", "--mixture", "0.9:1x2,0.1:3x4",
        "--csv", str(tmp_path / "load.csv"), "--plot", str(tmp_path / "load.png"),
    )  # fmt: skip
    assert "\nall\n20 requests: 20 ok, 0 refused, 0 failed, 0 unfinished\n" in said
    assert len((tmp_path / "load.csv").read_text().splitlines()) == 21
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_the_engine_and_the_page(repository: Path, tmp_path: Path) -> None:
    run(repository, "benchmarks.engine_overhead", "--quick", "--output", str(tmp_path))
    assert "## The engine against bare network calls\n\n`python -m benchmarks" in compose(tmp_path)


async def test_our_server_against_a_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = replace(QUICK, turn_seconds=0.3, unloaded_requests=1, drain_seconds=30.0)
    [ours] = [replace(peer, environment=None) for peer in PEERS if peer.name == OURS]
    [loop] = [peer for peer in PEERS if peer.name == "ONNX Runtime loop"]
    loop = replace(loop, arguments=(*loop.arguments, "--max-rows", "4"))
    missing = replace(loop, name="another", environment="no-such-environment")
    # Offers as much work as it takes to be over soon, whatever this machine can do.
    monkeypatch.setattr(peers_command.Comparison, "_capacity", lambda *_: 500.0)
    comparison = peers_command.Comparison(sizes, [])
    await comparison.run([ours, loop, missing])
    data = json.loads(json.dumps(comparison.data, default=dataclass_as_dict))
    assert data["peers"]["ONNX Runtime loop"]["difference"]["largest"] <= 1
    assert data["peers"][OURS]["mixed_equal"]["kinds"]["1 x 10"]["ok"] == 9
    assert data["peers"][OURS]["bursts"]["kinds"]["1 x 10"]["requests"] == 8
    assert list(data["unavailable"]) == ["another"]
    (tmp_path / "peers.json").write_text(json.dumps(a_result(data)))
    page = compose(tmp_path)
    assert "| ONNX Runtime loop | 0 |" in page or "| ONNX Runtime loop | 1 |" in page
    assert "another did not run: no-such-environment is not there: make bench-peers." in page


def test_the_profile_of_a_call_is_summed_up_by_operator() -> None:
    def node(name: str, operator: str, ts: int, dur: int) -> dict[str, Any]:
        args = {"op_name": operator}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}

    def call(ts: int) -> dict[str, Any]:
        return {"cat": "Session", "name": "model_run", "ts": ts, "dur": 100}

    events = [call(0), node("a", "Conv", 10, 90)]  # warms up, and does not count
    for ts in (1000, 2000):
        events += [
            call(ts), node("a", "Conv", ts, 50), node("b", "Conv", ts + 50, 10),
            node("c", "Mul", ts + 60, 20),
        ]  # fmt: skip
    profile = limit.by_operator(events, batch=8)
    assert profile["call_seconds"] == pytest.approx(100e-6)
    assert {name: entry["nodes"] for name, entry in profile["operators"].items()} == {
        "Conv": 2, "Mul": 1,
    }  # fmt: skip
    assert profile["operators"]["Conv"]["share"] == pytest.approx(0.6)
    assert profile["operators"]["Mul"]["seconds"] == pytest.approx(20e-6)


def dataclass_as_dict(value: Any) -> Any:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def a_result(data: dict[str, Any]) -> dict[str, Any]:
    machine = {
        "cpu": "a CPU", "cpus": 2, "features": [], "memory_gib": 4.0, "system": "Linux",
        "python": "3.11.0", "packages": {}, "busy_before": 0.0,
    }  # fmt: skip
    return {
        "benchmark": "peers", "command": "python -m benchmarks.peers", "quick": False,
        "date": "2026-01-02", "machine": machine, "data": data,
    }  # fmt: skip
