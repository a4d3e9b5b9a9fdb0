"""A changed file is noticed, once, and looking for it costs little."""

from collections.abc import Callable
from pathlib import Path

import pytest

from serving.watched_files import WatchedFiles


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_text(path.read_text())
    new.replace(path)


def swap_link(path: Path) -> None:
    """What Kubernetes does with a mounted secret: the path stays, and leads elsewhere."""
    target = path.with_name("target")
    target.write_text("one")
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize(
    "change",
    [lambda path: path.write_text("other"), replace, swap_link, lambda path: path.unlink()],
    ids=["written", "replaced", "swapped link", "removed"],
)
def test_a_change_is_seen_once(
    tmp_path: Path, clock: Clock, change: Callable[[Path], None]
) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_text("one")
    other.write_text("two")
    watched = WatchedFiles(other, path, clock=clock)
    clock.seconds += 2
    assert not watched.changed()
    change(path)
    clock.seconds += 2
    assert watched.changed()
    clock.seconds += 2
    assert not watched.changed()


def test_a_file_that_comes_back_has_changed(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "file"
    watched = WatchedFiles(path, clock=clock)
    path.write_text("one")
    clock.seconds += 2
    assert watched.changed()


def test_it_looks_once_a_second_at_most(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "file"
    watched = WatchedFiles(path, clock=clock)
    path.write_text("one")
    clock.seconds = 0.9
    assert not watched.changed()
    clock.seconds = 1.0
    assert watched.changed()
