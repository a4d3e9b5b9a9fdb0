"""Files that are whole or not there, and one clear line when the disk is full."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DiskFull(OSError):
    """A file did not fit; the message says which, how large it is, and what to do."""


@contextmanager
def room_for(path: Path, size_bytes: int | None = None) -> Iterator[None]:
    """Turn the system's "no space left on device" into one line about ``path``.

    Args:
        path: what the body writes.
        size_bytes: its size; None where it is not known.

    Raises:
        DiskFull: the file system, a quota or the process's limit on file sizes is exhausted.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFull) or error.errno not in _NO_ROOM:
            raise
        needed = "" if size_bytes is None else f" for its {size_bytes:,} bytes"
        raise DiskFull(
            f"{path}: no room{needed} ({error.strerror}; {free_bytes(path):,} bytes are free). "
            "Make room and start again, with --resume if there is a checkpoint; it is whole"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it; make its folder if there is none.

    Raises:
        DiskFull: it does not fit; nothing of it is left behind.
    """
    partial = path.with_name(path.name + ".partial")
    with room_for(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)  # unless it has its name by now


def free_bytes(path: Path) -> int:
    """Bytes that this process may still write where ``path`` lies, or would lie."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free
