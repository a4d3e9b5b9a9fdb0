"""How log lines look: as text for people, or as one JSON object per line for machines.

Any logger may pass `extra={"fields": {...}}`: the fields become key=value pairs or JSON members.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Mapping

from serving.log_writing import BackgroundHandler

FORMATS = ("text", "json")

_TIME = "%Y-%m-%dT%H:%M:%S"
_WORD = re.compile(r"[!#-<>-~]+")
"""Visible ASCII characters without " and =."""

_OWN_MEMBERS = frozenset({"time", "level", "logger", "message", "exception"})


def set_up(level: str, kind: str) -> None:
    """Sends everything that is logged in this process to stderr, in one format, without waiting.

    Args:
        level: a level's name in lower case; the least important that is shown.
        kind: one of FORMATS.
    """
    handler = BackgroundHandler(sys.stderr.fileno())
    handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_departure)


def flush() -> None:
    """Waits, for a moment at most, until what was logged is written."""
    for handler in logging.getLogger().handlers:
        handler.flush()


class TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER: message key=value ...`, times in UTC."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", _TIME)
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """Returns the line without the traceback that may follow it."""
        pairs = [f"{key}={_word(value)}" for key, value in _fields(record).items()]
        return " ".join([super().formatMessage(record), *pairs])


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, the fields, and exception if any."""

    def __init__(self) -> None:
        super().__init__(datefmt=_TIME)
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line. A field never replaces a member that every line has."""
        line: dict[str, object] = {
            "time": f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(
            (key, value) for key, value in _fields(record).items() if key not in _OWN_MEMBERS
        )
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _is_no_departure(record: logging.LogRecord) -> bool:
    """Whether a line of gRPC is worth an operator's time.

    A client that leaves while it is being answered is an error with a traceback there.
    """
    return not record.getMessage().startswith("ExecuteBatchError raised in core by servicer method")


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return fields


def _word(value: object) -> str:
    """Returns a value as one word: quoted if it would not be one."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if _WORD.fullmatch(text) else json.dumps(text)
