"""The bridge from the engine's threads to the coroutine that answers one request."""

import asyncio
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from serving.images import Pixels
from serving.request import Outcome

MAX_PREVIEWS = 64
"""Previews kept for a reader that is behind; the oldest go first."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended in the engine."""

    outcome: Outcome
    queue_seconds: float
    compute_seconds: float
    detail: str


@dataclass(slots=True)
class Parcel:
    """What has come from the engine since the last parcel.

    Attributes:
        images: (index, uint8 [C, H, W]), in the order in which they finished.
        previews: (index, position, uint8 [C, H, W]), at most one per image.
        previews_dropped: how many were overtaken.
        ending: set in the last parcel.
    """

    images: list[tuple[int, Pixels]] = field(default_factory=list)
    previews: list[tuple[int, int, Pixels]] = field(default_factory=list)
    previews_dropped: int = 0
    ending: Ending | None = None


class Delivery:
    """The engine's sink for one request, and the event loop's end of it.

    The engine never waits here: it puts down what it has and goes on. Images are kept until they
    are taken; of the previews only the newest of each unfinished image, and at most `max_previews`.

    Attributes:
        was_started: whether the request's first image has entered a batch.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        streaming: bool,
        max_previews: int = MAX_PREVIEWS,
    ) -> None:
        self.was_started = False
        self._loop = loop
        self._streaming = streaming
        self._max_previews = max_previews
        self._lock = threading.Lock()
        self._images: list[tuple[int, Pixels]] = []
        self._previews: OrderedDict[int, tuple[int, Pixels]] = OrderedDict()
        self._previews_dropped = 0
        self._ending: Ending | None = None
        self._woken = False
        self._wake = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether the engine is done with the request; its reader may not be."""
        return self._ending is not None

    def started(self) -> None:
        """Notes it; the engine measures the wait. Called on a thread of the engine's."""
        self.was_started = True

    def image(self, index: int, pixels: Pixels) -> None:
        """Takes a finished image. Called on a thread of the engine's."""
        with self._lock:
            self._images.append((index, pixels))
            if self._previews.pop(index, None) is not None:
                self._previews_dropped += 1
            waits = self._streaming and self._reader_waits()
        if waits:
            self._call_reader()

    def preview(self, index: int, position: int, pixels: Pixels) -> None:
        """Takes an estimate of an unfinished image. Called on a thread of the engine's."""
        with self._lock:
            if self._previews.pop(index, None) is not None:
                self._previews_dropped += 1
            self._previews[index] = (position, pixels)
            if len(self._previews) > self._max_previews:
                self._previews.popitem(last=False)
                self._previews_dropped += 1
            waits = self._streaming and self._reader_waits()
        if waits:
            self._call_reader()

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        """Takes the end of the request. Called on a thread of the engine's, once, last."""
        with self._lock:
            self._ending = Ending(outcome, queue_seconds, compute_seconds, detail)
            waits = self._reader_waits()
        if waits:
            self._call_reader()

    async def take(self) -> Parcel:
        """Waits for something to hand on, and returns all of it.

        Without streaming it waits for the end, so there is one parcel.
        """
        await self._wake.wait()
        with self._lock:
            self._wake.clear()
            self._woken = False
            parcel = Parcel(
                self._images,
                [(index, *preview) for index, preview in self._previews.items()],
                self._previews_dropped,
                self._ending,
            )
            self._images = []
            self._previews.clear()
            self._previews_dropped = 0
            return parcel

    def _reader_waits(self) -> bool:
        """Whether the reader is to be called; not again until it has come. The lock is held."""
        waits = not self._woken
        self._woken = True
        return waits

    def _call_reader(self) -> None:
        # Not under the lock: the reader comes at once, and would only wait for it.
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:
            # The event loop is closed: the process is on its way out and nobody reads any more.
            return
