"""serving.client.progress: a bar for a person at a terminal, and nothing for anybody else."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.client.progress import progress_bar


class Terminal(io.StringIO):
    """Keeps what a terminal would show."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_how_much_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("Drawing", 40) as update:
        update(10)
        update(30)
    shown = terminal.getvalue()
    assert "Drawing" in shown
    assert "10/40" in shown
    assert "40/40" in shown


def test_what_was_done_before_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("Drawing", 4000, done=3000) as update:
        update(1000)
    assert "3,000" in terminal.getvalue()
    assert "1000/1000" in terminal.getvalue()


def test_a_log_sees_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar("Drawing", 40) as update:
        update(40)
    assert capfd.readouterr() == ("", "")


def test_threads_may_tell_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("Drawing", 2000) as update, ThreadPoolExecutor(8) as threads:
        list(threads.map(update, [1] * 2000))
    assert "2000/2000" in terminal.getvalue()
