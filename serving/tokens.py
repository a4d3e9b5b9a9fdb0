"""Bearer tokens: who may ask, if a file says so. The tokens never reach a log or a client."""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from serving import refusal
from serving.watched_files import WatchedFiles

_KEY = "authorization"
_BEARER = re.compile(r"bearer +([!-~]+)", re.IGNORECASE)
_TOKEN = re.compile(r"[!-~]{16,512}")
_RULE = "16 to 512 visible ASCII characters"

_log = logging.getLogger(__name__)

Metadata = Iterable[tuple[str, str | bytes]]


class TokensError(Exception):
    """A file that holds no tokens; one line that names it and shows none of its content."""


class Tokens:
    """The tokens of a file, one a line; empty lines and lines that begin with # do not count.

    Args:
        path: read now, and again when it has changed.
        clock: seconds, monotonic.

    Raises:
        TokensError: if the file cannot be read, holds no token, or a line is not one.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._file = WatchedFiles(path, clock=clock)
        self._digests = _read(path)

    def require(self, metadata: Metadata | None) -> None:
        """Lets a request pass whose metadata have `authorization: Bearer TOKEN`.

        Raises:
            RefusedError: UNAUTHENTICATED.
        """
        if self._file.changed():
            self._read_again()
        values = [value for key, value in metadata or () if key == _KEY]
        if not values:
            raise refusal.unauthenticated("needs a bearer token, `authorization: Bearer TOKEN`")
        given = _BEARER.fullmatch(values[0]) if isinstance(values[0], str) else None
        if len(values) > 1 or given is None or not self._knows(given[1]):
            raise refusal.unauthenticated("accepts no such token")

    def _knows(self, token: str) -> bool:
        # All of them, and digests: the time says neither which one was close nor how long it is.
        digest = _digest(token)
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found

    def _read_again(self) -> None:
        try:
            self._digests = _read(self._path)
        except TokensError as error:
            _log.warning("the tokens stay as they were: %s", error)
        else:
            _log.info("%d tokens from %s", len(self._digests), self._path)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("ascii")).digest()


def _read(path: Path) -> tuple[bytes, ...]:
    name = f"--auth-tokens-file {path}"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokensError(f"{name}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise TokensError(f"{name}: this is not a text file") from None
    digests = []
    for number, line in enumerate(text.splitlines(), start=1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        if not _TOKEN.fullmatch(token):
            raise TokensError(f"{name}: line {number} is not a token, which is {_RULE}")
        digests.append(_digest(token))
    if not digests:
        raise TokensError(f"{name}: there is no token in it; write one a line, {_RULE}")
    return tuple(digests)
