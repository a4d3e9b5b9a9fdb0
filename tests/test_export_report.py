"""Figures with their bounds."""

import json

import pytest

from export.report import Check, failed, format_table


@pytest.mark.parametrize(
    ("check", "passed"),
    [
        (Check("a", 1.0, at_most=1.0), True),
        (Check("a", 1.1, at_most=1.0), False),
        (Check("a", 0.9, at_least=1.0), False),
        (Check("a", 1.0, at_least=1.0), True),
        (Check("a", float("nan"), at_most=1.0), False),
        (Check("a", float("nan"), at_least=1.0), False),
        (Check("a", 12345.0), True),
    ],
)
def test_a_figure_passes_within_its_bounds_and_nan_never(check: Check, passed: bool) -> None:
    assert check.passed is passed
    assert failed([check]) == ([] if passed else [check])


def test_the_table_says_what_was_measured_required_and_found() -> None:
    table = format_table(
        [
            Check("difference", 2.5e-7, at_most=1e-4),
            Check("share of pixels", 0.5, at_least=0.999),
            Check("rows", 3),
        ]
    )
    assert table.splitlines() == [
        "check            measured  required",
        "difference        2.5e-07  at most 0.0001  ok",
        "share of pixels       0.5  at least 0.999  FAILED",
        "rows                    3  -               for information",
    ]


def test_json_keeps_the_bound_and_leaves_out_what_there_is_not() -> None:
    assert json.loads(json.dumps(Check("a", 1, at_most=2).to_dict())) == {
        "name": "a", "measured": 1, "at_most": 2, "passed": True,
    }  # fmt: skip
    assert "at_most" not in Check("a", 1).to_dict()
