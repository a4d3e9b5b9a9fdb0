"""serving.client.dataset.unfinished: what a run has drawn is found again, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.client.dataset.plan import DatasetPlan, Span
from serving.client.dataset.unfinished import FOLDER, DatasetError, Unfinished
from tests.test_serving_client_dataset_plan import PLAN


def pixels_of(span: Span) -> np.ndarray:
    return np.arange(span.first_index, span.first_index + span.count, dtype=np.uint8)[
        :, None, None, None
    ] + np.zeros((1, 4, 4, 1), np.uint8)


@contextmanager
def begun(output: Path, *spans: Span, plan: DatasetPlan = PLAN) -> Iterator[Unfinished]:
    with Unfinished(output, plan) as unfinished:
        for span in spans:
            unfinished.keep(span, pixels_of(span))
        yield unfinished


def test_what_was_kept_is_found_by_the_next_run(tmp_path: Path) -> None:
    span = Span(2, 3, 4)
    with begun(tmp_path, span) as unfinished:
        assert unfinished.drawn.tolist() == [3 <= i < 7 for i in range(15)]
    with begun(tmp_path) as unfinished:
        assert unfinished.drawn.tolist() == [3 <= i < 7 for i in range(15)]
        assert np.array_equal(unfinished.images[3:7], pixels_of(span))


def test_a_torn_line_and_pixels_that_were_lost_are_drawn_again(tmp_path: Path) -> None:
    with begun(tmp_path, Span(0, 0, 3), Span(2, 3, 4)):
        pass
    with (tmp_path / FOLDER / "journal.txt").open("a") as journal:
        journal.write("7 10 ab")  # the machine stopped here
    with (tmp_path / FOLDER / "images.raw").open("r+b") as images:
        images.write(b"\xff")  # of the first image
    with begun(tmp_path) as unfinished:
        assert unfinished.drawn.tolist() == [3 <= i < 7 for i in range(15)]


def test_a_line_after_a_torn_one_counts(tmp_path: Path) -> None:
    with begun(tmp_path):
        pass
    with (tmp_path / FOLDER / "journal.txt").open("a") as journal:
        journal.write("7 10 ab")
    with begun(tmp_path, Span(0, 0, 3), Span(2, 3, 4)):
        pass
    with begun(tmp_path) as unfinished:
        assert unfinished.drawn[:7].all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 8), ("model_version", "1.0.1"), ("guidance_scale", 2.0), ("formats", ("png",))],
)
def test_another_plan_is_refused_by_the_field_that_differs(
    tmp_path: Path, field: str, value: object
) -> None:
    with begun(tmp_path, Span(0, 0, 3)):
        pass
    with (
        pytest.raises(DatasetError, match=f"{field} is .* there"),
        Unfinished(tmp_path, replace(PLAN, **{field: value})),
    ):
        pass


def test_two_runs_do_not_draw_into_one_folder(tmp_path: Path) -> None:
    with (
        begun(tmp_path),
        pytest.raises(DatasetError, match="another process"),
        Unfinished(tmp_path, PLAN),
    ):
        pass
    with begun(tmp_path):
        pass
