"""CUDA graphs are recorded while no other thread uses CUDA.

ONNX Runtime records in the mode in which whatever another thread does meanwhile may end the
recording, or fail: to allocate memory, to wait for a stream, to open a library.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Recording:
    """Many use it at a time, or one records. Not to be asked for by who has it already."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._using = 0
        self._is_recording = False

    @contextmanager
    def use(self) -> Iterator[None]:
        """Waits until nobody records, nor waits for that."""
        with self._changed:
            while self._is_recording:
                self._changed.wait()
            self._using += 1
        try:
            yield
        finally:
            with self._changed:
                self._using -= 1
                if not self._using:
                    self._changed.notify_all()

    @contextmanager
    def record(self) -> Iterator[None]:
        """Waits until nobody uses it; whoever comes meanwhile waits."""
        with self._changed:
            while self._is_recording:
                self._changed.wait()
            self._is_recording = True
            while self._using:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._is_recording = False
                self._changed.notify_all()


CUDA = Recording()
"""Of the process: all of its devices, models and threads."""
