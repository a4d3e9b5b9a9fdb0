"""Percentiles, goodput and what else a run of requests amounts to."""

import csv
from pathlib import Path

import pytest

from benchmarks.load.arrivals import Kind
from benchmarks.load.open_loop import Record, Status
from benchmarks.load.plot import plot
from benchmarks.load.summary import by_kind, percentile, summarise, write_csv

SMALL, LARGE = Kind(0.5, 1, 10), Kind(0.5, 4, 10)


def record(
    at: float, latency: float, status: Status = "ok", kind: Kind = SMALL, late: float = 0.0
) -> Record:
    return Record(kind, at, at + late, at + latency, status)


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 5.0), (90, 9.0), (99, 10.0), (100, 10.0), (1, 1.0), (10, 1.0)]
)
def test_a_percentile_is_the_value_at_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(i) for i in range(10, 0, -1)], percent) == expected


def test_the_99th_percentile_of_a_thousand_values_leaves_ten_above() -> None:
    assert percentile([float(i) for i in range(1, 1001)], 99) == 990.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_that_means_nothing_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile(values, percent)


def test_a_run_is_summed_up() -> None:
    records = [
        record(0.0, 0.5),
        record(1.0, 1.5, kind=LARGE),
        record(1.0, 0.01, "refused", late=0.25),
        record(2.0, 2.0, "unfinished"),
    ]
    summary = summarise(records, latency_bound_seconds=1.0)
    assert (summary.requests, summary.ok, summary.refused, summary.unfinished) == (4, 2, 1, 1)
    assert summary.seconds == 4.0
    assert summary.images_per_second == pytest.approx((1 + 4) / 4.0)
    assert summary.rows_per_second == pytest.approx((10 + 40) / 4.0)
    assert summary.goodput == 0.25, "of all that were sent"
    assert summary.p50_seconds == 1.5
    assert summary.max_seconds == 2.0, "an unfinished request has waited at least so long"
    assert summary.behind_seconds == 0.25


def test_a_run_in_which_all_are_refused_has_no_latency() -> None:
    summary = summarise([record(0.0, 0.01, "refused")], 1.0)
    assert summary.p99_seconds is None
    assert summary.goodput == 0.0
    assert "p99 -" in summary.lines()


def test_records_are_told_apart_by_what_they_asked_for() -> None:
    kinds = by_kind([record(0.0, 1.0), record(0.0, 2.0, kind=LARGE), record(1.0, 1.0)])
    assert {name: len(records) for name, records in kinds.items()} == {"1 x 10": 2, "4 x 10": 1}


def test_the_csv_holds_every_request(tmp_path: Path) -> None:
    write_csv([record(0.5, 1.25, late=0.125), record(1.0, 0.5, "refused", LARGE)], tmp_path / "x")
    rows = list(csv.DictReader((tmp_path / "x").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["ok", "refused"]
    assert [row["count"] for row in rows] == ["1", "4"]
    assert (rows[0]["sent_seconds"], rows[0]["latency_seconds"]) == ("0.625000", "1.250000")


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot([record(0.0, 1.0), record(1.0, 0.1, "refused")], "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
