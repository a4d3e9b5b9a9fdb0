"""A file that tells whoever started a server that it is ready, and where it is reached."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


class ReadyFileError(Exception):
    """Nothing can be written there; one line that names the flag and the file."""


class ReadyFile:
    """There while the server is, once it is ready. Takes away what a killed one has left.

    Raises:
        ReadyFileError: now, not only once everything is loaded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        with self._errors():
            self._unfinished.touch()
            self._unfinished.unlink()
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def written(self, content: Mapping[str, object]) -> Iterator[None]:
        """Surrounds the time in which the server is there.

        Raises:
            ReadyFileError: as the class does.
        """
        with self._errors():
            self._unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")
            self._unfinished.replace(self._path)
        try:
            yield
        finally:
            self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ReadyFileError(f"--ready-file {self._path}: {reason}") from None
