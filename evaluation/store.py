"""Finished measurements and drawn images on disk, so that an interrupted evaluation continues.

Every entry lies under a key that holds all that determines it. Nothing is ever mixed: other
weights, other judges, another seed or another version of the protocol make another file.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

logger = logging.getLogger(__name__)

Key = Mapping[str, Any]
"""What JSON can say: names, numbers, checksums."""
Arrays = dict[str, NDArray[Any]]
Result = TypeVar("Result", bound=BaseModel)

_KEY = "key"


def digest(key: Key) -> str:
    """sha256 of a key, independent of the order of its entries: 64 hex digits."""
    return hashlib.sha256(_canonical(key).encode()).hexdigest()


def _canonical(key: Key) -> str:
    return json.dumps(key, sort_keys=True, allow_nan=False, separators=(",", ":"))


class Store:
    """Entries of several kinds under one directory: DIRECTORY/KIND/DIGEST.json or .npz.

    A file appears whole or not at all, also when the process is killed while it is written. One
    that cannot be read, or that holds another key, counts as absent.

    Args:
        directory: made when the first entry is written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def result(
        self, kind: str, key: Key, form: type[Result], compute: Callable[[], Result]
    ) -> Result:
        """The stored result of a key, or what ``compute`` returns, which is then stored."""
        path = self._path(kind, key, "json")
        found = _read(path, lambda content: _result(content, key, form))
        if found is not None:
            return found
        result = compute()
        entry = {_KEY: key, "value": result.model_dump(mode="json")}
        _write(path, json.dumps(entry, indent=1, allow_nan=False).encode())
        return result

    def arrays(self, kind: str, key: Key, compute: Callable[[], Arrays]) -> Arrays:
        """The stored arrays of a key, or what ``compute`` returns, which is then stored."""
        path = self._path(kind, key, "npz")
        found = _read(path, lambda content: _arrays(content, key))
        if found is not None:
            return found
        arrays = compute()
        content = BytesIO()
        named: Arrays = {_KEY: np.array(_canonical(key)), **arrays}
        np.savez_compressed(content, allow_pickle=False, **named)
        _write(path, content.getvalue())
        return arrays

    def _path(self, kind: str, key: Key, suffix: str) -> Path:
        return self.directory / kind / f"{digest(key)[:32]}.{suffix}"


def _result(content: bytes, key: Key, form: type[Result]) -> Result | None:
    entry = json.loads(content)
    if _canonical(entry[_KEY]) != _canonical(key):
        return None
    return form.model_validate_json(json.dumps(entry["value"]))


def _arrays(content: bytes, key: Key) -> Arrays | None:
    with np.load(BytesIO(content), allow_pickle=False) as file:
        if str(file[_KEY]) != _canonical(key):
            return None
        return {name: file[name] for name in file.files if name != _KEY}


Read = TypeVar("Read")


def _read(path: Path, parse: Callable[[bytes], Read | None]) -> Read | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = parse(content)
    except (BadZipFile, EOFError, KeyError, TypeError, ValueError, ValidationError) as error:
        logger.warning("%s cannot be read (%s): measuring anew", path, error)
        return None
    if found is None:
        logger.warning("%s belongs to another measurement: measuring anew", path)
    return found


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except BaseException:  # Ctrl-C too
        partial.unlink(missing_ok=True)
        raise
