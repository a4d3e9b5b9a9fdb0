"""Log lines are written by a thread of their own: whoever logs never waits for whoever reads.

A pipe that nobody reads, or a disk that hangs, would otherwise hold up the event loop and the
engine.
"""

import logging
import os
import select
import threading
from collections import deque

MAX_LINES = 10_000
"""Lines that may wait to be written; those beyond are counted and lost."""

FLUSH_SECONDS = 1.0
"""How long the end of the process is held up for lines that wait."""

PAUSE_SECONDS = 0.05
"""Between two writes: to wake the thread costs more than a line, so lines are written together."""

_LINES_AT_ONCE = 1000


class BackgroundHandler(logging.Handler):
    """Writes to a file descriptor, in order, on a daemon thread that lives as long as the process.

    It writes past sys.stderr, whose lock a thread that is held up would keep.
    """

    def __init__(self, file_descriptor: int, *, max_lines: int = MAX_LINES) -> None:
        """Starts the thread. `max_lines` is 1 or more."""
        super().__init__()
        self._file_descriptor = file_descriptor
        self._max_lines = max_lines
        self._lines: deque[str] = deque()
        self._lost = 0
        self._writing = False
        self._changed = threading.Condition()
        self._flushing = threading.Event()
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a line."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  (as every handler does)
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) < self._max_lines:
                self._lines.append(line)
                self._changed.notify_all()
            else:
                self._lost += 1

    def flush(self) -> None:
        """Waits until everything is written, for FLUSH_SECONDS at most."""
        self._flushing.set()
        with self._changed:
            self._changed.wait_for(lambda: not (self._lines or self._writing), FLUSH_SECONDS)
        self._flushing.clear()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                self._writing = True
                lines = [
                    self._lines.popleft() for _ in range(min(_LINES_AT_ONCE, len(self._lines)))
                ]
                lost, self._lost = (0, self._lost) if self._lines else (self._lost, 0)
            if lost:  # they came after all of these
                lines.append(self.format(_loss(lost)))
            self._write("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
            self._flushing.wait(PAUSE_SECONDS)

    def _write(self, content: bytes) -> None:
        while content:
            try:
                content = content[os.write(self._file_descriptor, content) :]
            except BlockingIOError:
                select.select([], [self._file_descriptor], [])
            except OSError:
                return  # whoever read has left, and there is nobody else to tell


def _loss(lines: int) -> logging.LogRecord:
    text = f"{lines} log lines were lost: they were not read as fast as they came"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (), None)
