"""From lanes to sinks: the previews and images that a step has made."""

from collections.abc import Callable

import numpy as np

from diffusion.reference import to_uint8
from serving.denoiser import Denoised
from serving.engine_statistics import StepStats
from serving.lanes import Float32Array, Int64Array, LaneTable
from serving.request import Outcome, Pixels
from serving.request_book import ActiveRequest, RequestBook, tell
from serving.sharing import Sharing

End = Callable[[ActiveRequest, Outcome, str], None]
"""Ends a request, with the detail for the log. Harmless for one that has ended."""


class HandOver:
    """Tells sinks what a step made for them. Requests that are complete, or broken, are ended."""

    def __init__(self, book: RequestBook, end: End) -> None:
        self._book = book
        self._end = end

    def previews(self, lanes: LaneTable, denoised: Denoised, stats: StepStats) -> None:
        """Hands over the x_0 estimates that are due, of lanes that go on."""
        n = lanes.count
        every = lanes.preview_every[:n]
        if not every.any():
            return
        due = (every > 0) & (lanes.position[:n] % np.maximum(every, 1) == 0)
        due &= ~denoised.finished & ~self._book.ended[lanes.request[:n]]
        which = np.flatnonzero(due)
        positions = lanes.position[which].tolist()
        for (request, index, pixels), position in zip(
            self._pictures(lanes, which, denoised.x_0), positions, strict=True
        ):
            stats.previews += self._tell(request, request.sink.preview, index, position, pixels)

    def images(
        self, lanes: LaneTable, finished: Int64Array, sharing: Sharing | None, stats: StepStats
    ) -> None:
        """Hands over the images of finished lanes, to all who wait for them."""
        pictures = self._pictures(lanes, finished, lanes.x)
        if sharing is not None:
            # All of them first: to be told may end a request.
            pictures += [
                (sharer, index, pixels)
                for request, index, pixels in pictures
                for sharer in sharing.finished(request, index, pixels)
            ]
        for request, index, pixels in pictures:
            self.image(request, index, pixels, stats)

    def image(self, request: ActiveRequest, index: int, pixels: Pixels, stats: StepStats) -> None:
        """Hands one image over; ends the request if it was the last."""
        if not self._tell(request, request.sink.image, index, pixels):
            return
        stats.images_finished += 1
        request.images_left -= 1
        if request.images_left == 0:
            self._end(request, Outcome.FINISHED, "")

    def started(self, request: ActiveRequest) -> None:
        """Says that a request's first image has a lane."""
        self._tell(request, request.sink.started)

    def _pictures(
        self, lanes: LaneTable, which: Int64Array, images: Float32Array
    ) -> list[tuple[ActiveRequest, int, Pixels]]:
        pixels = to_uint8(images[which])
        requests = self._book.at(lanes.request[which])
        return list(zip(requests, lanes.index[which].tolist(), pixels, strict=True))

    def _tell(
        self, request: ActiveRequest, method: Callable[..., None], *arguments: object
    ) -> bool:
        """Tells a request that has not ended; one whose sink raises is cancelled."""
        if not self._book.is_open(request):
            return False
        if not tell(request, method, *arguments):
            self._end(request, Outcome.CANCELLED, "its sink raised")
            return False
        return True
