"""Which code is running, without a word on the machine."""

import os
import subprocess
from pathlib import Path

import pytest

from training.source_code import ROOT, git_state


def test_the_checkout_is_the_one_that_runs(repository: Path) -> None:
    assert repository == ROOT


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments],
        # Inside a hook git would be told of the repository that the hook is of.
        env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_git_state_is_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "checkout"
    root.mkdir()
    nothing = {"git_commit": None, "git_dirty": None}
    git(root, "init")
    assert git_state(root) == nothing  # no commit yet
    (root / "a").write_text("1")
    git(root, "add", "a")
    git(root, "commit", "-m", "first")
    commit = git(root, "rev-parse", "HEAD")
    assert git_state(root) == {"git_commit": commit, "git_dirty": False}
    (root / "new").write_text("not known to git")
    assert git_state(root) == {"git_commit": commit, "git_dirty": False}
    (root / "a").write_text("2")
    assert git_state(root) == {"git_commit": commit, "git_dirty": True}


def test_somebody_elses_checkout_around_it_is_not_its_own(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    git(root, "init")
    (root / "a").write_text("1")
    git(root, "add", "a")
    git(root, "commit", "-m", "first")
    (root / "installed").mkdir()
    assert git_state(root / "installed") == {"git_commit": None, "git_dirty": None}


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) == {"git_commit": None, "git_dirty": None}
