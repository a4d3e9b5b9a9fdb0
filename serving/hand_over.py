"""From lanes to sinks: the previews and images that a step has made."""

from collections.abc import Callable

import numpy as np

from diffusion.reference import to_uint8
from serving.denoiser import Denoised
from serving.ending import Ending
from serving.engine_statistics import StepStats
from serving.lanes import Float32Array, Int64Array, LaneTable
from serving.request import Outcome, Pixels
from serving.request_book import ActiveRequest, RequestBook, tell
from serving.sharing import Sharing


class HandOver:
    """Tells sinks what a step made for them. Requests that are complete, or broken, are ended."""

    def __init__(self, book: RequestBook, ending: Ending) -> None:
        self._book = book
        self._ending = ending

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
            told = self._tell(request, stats, request.sink.preview, index, position, pixels)
            stats.previews += told

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
        if not self._tell(request, stats, request.sink.image, index, pixels):
            return
        stats.images_finished += 1
        request.images_left -= 1
        if request.images_left == 0:
            self._ending.end(request, Outcome.FINISHED, "", stats)

    def started(self, request: ActiveRequest, stats: StepStats) -> None:
        """Says that a request's first image has a lane."""
        self._tell(request, stats, request.sink.started)

    def _pictures(
        self, lanes: LaneTable, which: Int64Array, images: Float32Array
    ) -> list[tuple[ActiveRequest, int, Pixels]]:
        pixels = to_uint8(images[which])
        requests = self._book.at(lanes.request[which])
        return list(zip(requests, lanes.index[which].tolist(), pixels, strict=True))

    def _tell(
        self,
        request: ActiveRequest,
        stats: StepStats,
        method: Callable[..., None],
        *arguments: object,
    ) -> bool:
        """Tells a request that has not ended; one whose sink raises is cancelled."""
        if not self._book.is_open(request):
            return False
        if not tell(request, method, *arguments):
            self._ending.end(request, Outcome.CANCELLED, "its sink raised", stats)
            return False
        return True
