"""The page of results says what the results hold, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from benchmarks.report.__main__ import PAGE, compose, other_machines, page_of
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


def test_the_committed_pages_are_those_of_the_committed_results() -> None:
    directory = REPOSITORY / results.DIRECTORY
    pages = {PAGE: directory} | {page_of(other): other for other in other_machines(directory)}
    committed = {path.name for path in (REPOSITORY / PAGE).parent.glob("RESULTS*.md")}
    assert committed == {page.name for page in pages}
    for page, of in pages.items():
        assert (REPOSITORY / page).read_text() == compose(of), "python -m benchmarks.report"


def test_a_page_names_those_of_other_kinds_of_machines(tmp_path: Path) -> None:
    write(tmp_path, "engine", engine(0.96))
    assert "other kinds" not in compose(tmp_path)
    (tmp_path / "avx2").mkdir()
    write(tmp_path / "avx2", "engine", engine(0.97))
    assert "On other kinds of machines: [avx2](RESULTS-avx2.md)." in compose(tmp_path)
    assert "0.97" in compose(tmp_path / "avx2")
    assert page_of(tmp_path / "avx2") == PAGE.with_name("RESULTS-avx2.md")


def test_a_page_has_further_results_of_the_same_benchmark_behind_the_first(tmp_path: Path) -> None:
    write(tmp_path, "engine", engine(0.96))
    write(tmp_path, "engine-older", engine(0.81) | {"device": "an older one"})
    page = compose(tmp_path)
    first, _, second = page.partition("### The same on an older one")
    assert "0.96" in first
    assert "0.81" not in first
    assert "0.81" in second


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
