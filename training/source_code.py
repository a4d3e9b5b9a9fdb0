"""Which code is running: the git commit of this checkout, if it is one."""

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def git_state(root: Path = ROOT) -> dict[str, Any]:
    """git_commit, and git_dirty: whether files that git knows differ from it.

    Both are None outside a checkout, and where there is no git.
    """
    nothing = {"git_commit": None, "git_dirty": None}
    top = _git(root, "rev-parse", "--show-toplevel")
    # Installed into an environment that lies in somebody's checkout is not that checkout.
    if top is None or Path(top).resolve() != root:
        return nothing
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return nothing
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


@functools.cache
def running_code() -> dict[str, Any]:
    """``git_state`` of this checkout when it was first asked for: about when it was imported."""
    return git_state()


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git, no checkout, or no answer."""
    program = shutil.which("git")
    if program is None:
        return None
    try:
        completed = subprocess.run(
            [program, "-C", str(root), *arguments],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip()
