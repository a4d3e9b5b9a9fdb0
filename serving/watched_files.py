"""Files that are read again when somebody has changed them: certificates and tokens."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

# Looking costs a system call per file, which a flood of requests need not cause.
_LOOK_EVERY_SECONDS = 1.0


class WatchedFiles:
    """Says when one of some files may have changed. Looks when asked. Safe from any thread.

    Args:
        paths: the files.
        clock: seconds, monotonic.
    """

    def __init__(self, *paths: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._clock = clock
        self._lock = threading.Lock()
        # Before anybody reads them: what is written from now on is seen as a change.
        self._seen = self._look()
        self._looked_seconds = clock()

    def changed(self) -> bool:
        """Whether a file was written, replaced, removed or made since the last True.

        Looks at most once a second; in between the answer is False.
        """
        with self._lock:
            now_seconds = self._clock()
            if now_seconds - self._looked_seconds < _LOOK_EVERY_SECONDS:
                return False
            self._looked_seconds = now_seconds
            seen = self._look()
            if seen == self._seen:
                return False
            self._seen = seen
            return True

    def _look(self) -> list[tuple[int, ...]]:
        return [_signature(path) for path in self._paths]


def _signature(path: Path) -> tuple[int, ...]:
    """Returns something that differs after the file was written or replaced."""
    try:
        status = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_ino, status.st_size, status.st_mtime_ns)
