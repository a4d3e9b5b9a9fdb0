"""Signals that ask for a stop, heard between train steps."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal asked for a stop, and the checkpoint is saved."""

    def __init__(self, signal_number: int, path: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; saved {path}")
        self.signal_number = signal_number


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives SIGTERM and SIGINT instead of the process; a second one acts at once."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])
        logger.warning("%s: saving after this train step", signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, remember)
    try:
        yield received
    finally:
        for taken, handler in previous.items():
            signal.signal(taken, handler)
