"""docs/promises.md: every promise names a test that exists, and every such test has its promise."""

import ast
import re
from pathlib import Path

from tests.fault_figures import Figure, table

# Tries a tool of the tests, not the server.
NO_PROMISE = {"test_promise_hardening.py::test_the_watch_on_connections_sees_one"}


def promise_tests(repository: Path) -> set[str]:
    """FILE::FUNCTION of every promise test."""
    found = set()
    for path in (repository / "tests").glob("test_promise_*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
                "test_"
            ):
                found.add(f"{path.name}::{node.name}")
    return found


def test_every_promise_names_its_test_and_every_test_its_promise(repository: Path) -> None:
    page = (repository / "docs" / "promises.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(test_\w+\.py::test_\w+)`", row) for row in rows]
    assert all(len(tests) == 1 for tests in named), "a promise without its test"
    assert {tests[0] for tests in named} == promise_tests(repository) - NO_PROMISE


def test_the_promises_of_the_contract_are_all_there(repository: Path) -> None:
    page = (repository / "docs" / "promises.md").read_text("utf-8")
    for promise in (
        "one final status each", "same request, same pixels", "image i does not depend on count",
        "cancelled work stops", "deadlines", "overload", "fairness", "bad input",
        "health is the truth", "SIGTERM", "SIGKILL of one of several replicas", "no leak",
        "metrics tell the truth", "a GPU that is asked for is used", "bad bundle", "calls nobody",
        "needs no rights",
    ):  # fmt: skip
        assert f"\n| {promise}" in page


def test_figures_are_a_markdown_table() -> None:
    assert table([Figure("overload", "goodput", "0.93", ">= 0.9")]) == [
        "| promise | what | measured | must hold |",
        "|---|---|---|---|",
        "| overload | goodput | 0.93 | >= 0.9 |",
    ]
