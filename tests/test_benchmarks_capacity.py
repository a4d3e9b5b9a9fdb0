"""The benchmark behind docs/capacity.md: that it measures a server, and that its sums are right."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.capacity import (
    Capacity,
    Setting,
    arithmetic,
    main,
    replace_measured,
    replica_hours,
    replicas_needed,
    table,
)
from tests.fakes import write_tiny_bundle

DEFAULT = Capacity(Setting("ddim", 10, 1.0), 100.0, 0.04)


def test_a_server_is_measured_and_the_page_is_written(tmp_path: Path) -> None:
    model, page = write_tiny_bundle(tmp_path / "tiny"), tmp_path / "page.md"
    begin, end = re.findall(
        r"<!--.*?-->", (Path(__file__).parent.parent / "docs" / "capacity.md").read_text()
    )
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    arguments = ["--model", str(model), "--num-steps", "3", "--seconds", "0.1", "--page", str(page)]
    done = CliRunner().invoke(main, [*arguments, "--", "--max-lanes", "4", "--provider", "cpu"])
    assert done.exit_code == 0, done.output
    written = page.read_text()
    assert written.startswith(f"before\n{begin}\n")
    assert written.endswith(f"{end}\nafter\n")
    assert "old" not in written
    assert "provider cpu, 4 lanes" in written
    [row] = [line for line in written.splitlines() if line.startswith("| ddim, 3, 1 ")]
    _, _, rows, images_per_second, *_ = row.split("|")
    assert float(rows) == 3
    assert float(images_per_second) > 0


def test_a_page_without_marks_is_left_alone() -> None:
    with pytest.raises(ValueError, match="the page has no <!--"):
        replace_measured("nothing here", ["lines"])


def test_the_peak_of_a_day_takes_its_replicas() -> None:
    # 3 x 11.57 images per second, at 70 % of each.
    assert replicas_needed(1.0) == 50
    assert replicas_needed(17.0) == 3
    assert replicas_needed(1000.0) == 2, "one can go"


def test_a_million_images_take_their_hours() -> None:
    assert replica_hours(1000 / 0.7) == pytest.approx(1000 / 3600)


def test_the_table_and_the_arithmetic_say_the_same() -> None:
    assert table([DEFAULT], 0.5)[-1] == ("| ddim, 10, 1 | 10 | 100 | 40 ms | 3.97 | 1.98 | 2 |")
    assert arithmetic(DEFAULT, 0.5) == [
        (
            "- 1,000,000 / 86,400 s = 11.6 images per second on average;"
            " 3 times that in the busiest hour: 34.7."
        ),
        "- One replica gives 100 with the default setting; asked for 70% of it, 70.",
        "- 34.7 / 70 = 0.5: 2 replicas (at least 2, so that one can go).",
        "- A fixed number: 2 x 24 h = 48 replica-hours a day; at 0.5 an hour, 24.00.",
        (
            "- The work itself is 3.97 replica-hours; scaled by load, but never below 2,"
            " a day is about 48: 24.00."
        ),
    ]
