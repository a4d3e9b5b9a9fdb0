"""docs/notebook.ipynb: it runs from front to back, and shows what it shows."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tools.run_notebook import NOTEBOOK, run

MAX_BYTES = 150_000


def outputs(node: nbformat.NotebookNode) -> Iterator[tuple[int, Any]]:
    """Every output, with the number of its cell."""
    for i, cell in enumerate(node.cells):
        for output in cell.get("outputs", []):
            yield i, output


def said(node: nbformat.NotebookNode) -> dict[int, str]:
    """What the cells print, without sizes of files, which are another machine's.

    A kernel that is slow sends what a cell prints in several pieces.
    """
    texts: dict[int, str] = {}
    for i, output in outputs(node):
        if output.output_type == "stream":
            texts[i] = texts.get(i, "") + output.text
    return {i: re.sub(r"[\d,]+ bytes", "N bytes", text) for i, text in texts.items()}


def pictures(node: nbformat.NotebookNode) -> list[int]:
    return [i for i, output in outputs(node) if "image/png" in output.get("data", {})]


@pytest.fixture(scope="module")
def committed(repository: Path) -> nbformat.NotebookNode:
    return nbformat.read(repository / NOTEBOOK, as_version=4)


def test_what_is_committed_is_valid_small_and_was_run(
    repository: Path, committed: nbformat.NotebookNode
) -> None:
    nbformat.validate(committed)
    assert (repository / NOTEBOOK).stat().st_size <= MAX_BYTES
    assert len(pictures(committed)) == 3
    assert not [output for _, output in outputs(committed) if output.output_type == "error"]
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "from front to back"


@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_it_runs_and_says_the_same(repository: Path, committed: nbformat.NotebookNode) -> None:
    executed = run(repository / NOTEBOOK, repository)
    assert said(executed) == said(committed)
    assert pictures(executed) == pictures(committed)
