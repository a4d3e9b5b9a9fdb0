"""The page of results says what the results hold, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from benchmarks.report.__main__ import PAGE, compose
from benchmarks.results import Spread

REPOSITORY = Path(__file__).resolve().parent.parent


def write(directory: Path, name: str, data: dict[str, Any], **changes: Any) -> None:
    machine = results.machine() | {"busy_before": 0.02, "cpus": 2}
    result = {
        "benchmark": name, "command": f"python -m {name}", "quick": False, "date": "2026-01-02",
        "machine": machine, "data": data,
    } | changes  # fmt: skip
    (directory / f"{name}.json").write_text(json.dumps(result))


def spread(*values: float) -> dict[str, float]:
    each = Spread.of(values)
    return {"median": each.median, "low": each.low, "high": each.high, "count": each.count}


def engine(*ratios: float) -> dict[str, Any]:
    return {
        "lanes": 16, "sampler": "ddpm", "provider": "cpu", "bare_rows_per_second": 50.0,
        "engine_rows_per_second": 49.0, "ratio": spread(*ratios),
    }  # fmt: skip


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    directory = REPOSITORY / results.DIRECTORY
    if not directory.is_dir():
        assert not (REPOSITORY / PAGE).exists(), "a page without results"
        pytest.skip("nothing has been measured yet")
    assert (REPOSITORY / PAGE).read_text() == compose(directory), "python -m benchmarks.report"


def test_a_spread_is_the_median_and_the_range() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,230"), (0.01234, "0.0123"), (12.34, "12.3"), (999.9, "1,000"), (853.4, "853"),
     (None, "-"), (0, "0")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert results.number(value) == text


def test_short_times_are_milliseconds() -> None:
    assert [results.milliseconds(s) for s in (0.0123, 1.5, 61.0, None)] == [
        "12.3 ms", "1.5 s", "61 s", "-",
    ]  # fmt: skip


def test_a_goal_is_met_or_missed_by_the_median(tmp_path: Path) -> None:
    write(tmp_path, "engine", engine(0.94, 0.96, 0.97))
    assert "At least 95 % of bare calls: 0.96 (0.94 to 0.97), met." in compose(tmp_path)
    write(tmp_path, "engine", engine(0.93, 0.94, 0.97))
    assert "0.94 (0.93 to 0.97), **missed**." in compose(tmp_path)


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    write(tmp_path, "engine", engine(0.96))
    page = compose(tmp_path)
    assert "Not measured yet: `make bench-peers`." in page
    assert "`python -m engine` on 2026-01-02: 2 CPUs" in page


def test_figures_that_mean_nothing_are_called_so(tmp_path: Path) -> None:
    write(tmp_path, "engine", engine(0.96), quick=True)
    assert "A quick run" in compose(tmp_path)
    write(tmp_path, "engine", engine(0.96), machine=results.machine() | {"busy_before": 0.7})
    page = compose(tmp_path)
    assert "Other work took 70 % of the CPUs just before. **The machine was not quiet" in page


def test_no_results_are_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results"):
        compose(tmp_path)


def test_a_busy_machine_is_noticed() -> None:
    program = "import time\nwhile time.process_time() < 30: pass"
    cpus = os.cpu_count() or 1
    busy = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(cpus)]
    try:
        share = results.busy_share(0.5)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert share is not None
    assert 0.5 < share <= 1.0
