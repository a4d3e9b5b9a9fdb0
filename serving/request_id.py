"""The id under which a request stands in the log, and which its client sees too."""

import re
import secrets
from collections.abc import Iterable

KEY = "x-request-id"
"""The metadata key, of a request and of its trailing metadata."""

_ACCEPTED = re.compile(r"[!-~]{1,64}")


def choose(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Returns the client's id, if it is 1 to 64 visible ASCII characters, else a new one.

    An id that is not accepted is not worth an error: a request does not depend on it.
    """
    for key, value in metadata or ():
        if key == KEY and isinstance(value, str) and _ACCEPTED.fullmatch(value):
            return value
    return secrets.token_hex(8)
