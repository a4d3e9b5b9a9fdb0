"""A bar on stderr for whoever waits: shown on a terminal, silent in a log."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def progress_bar(label: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields what is told how many more are done, from any thread.

    Args:
        label: what goes on.
        total: how many there are.
        done: how many were done before; they do not count for the time that is left.
    """
    with click.progressbar(
        length=total - done,
        label=label if not done else f"{label} (go on after {done:,})",
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
        show_pos=True,
        update_min_steps=max(1, total // 1000),
    ) as bar:
        lock = threading.Lock()

        def update(more: int) -> None:
            with lock:
                bar.update(more)

        yield update
