"""Equal images are computed once: taken from the cache, or from a lane that is under way.

An image is a function of its key, so it does not matter whose lane it was. A request with previews
takes no part: it wants to see its own images grow.
"""

from dataclasses import dataclass, field

import numpy as np

from serving.denoiser import Denoiser
from serving.engine_statistics import StepStats
from serving.image_cache import ImageCache, Key, key_of
from serving.lanes import Int64Array, LaneTable
from serving.request import Pixels
from serving.request_book import ActiveRequest
from serving.scheduling import WorkQueue

Hit = tuple[ActiveRequest, int, Pixels]
"""An image from the cache: whose, its index, its pixels."""


@dataclass(slots=True, eq=False)
class _InFlight:
    """An image that has a lane, running or set aside, which is its owner's."""

    owner: ActiveRequest
    sharers: list[ActiveRequest] = field(default_factory=list)


class Sharing:
    """Who waits for which image. Not thread-safe.

    The queue counts an image for the owner of its lane alone.
    """

    def __init__(
        self, cache: ImageCache, denoisers: tuple[Denoiser, ...], queue: WorkQueue
    ) -> None:
        """`denoisers` of one engine: all that have lanes."""
        self._cache = cache
        self._denoisers = denoisers
        self._queue = queue
        self._in_flight: dict[Key, _InFlight] = {}
        self._shared: dict[int, set[Key]] = {}  # by the request id of a sharer

    def takes_part(self, request: ActiveRequest) -> bool:
        """Whether a request's images may be shared."""
        return request.spec.preview_every == 0

    def shared_by(self, request: ActiveRequest) -> int:
        """Images that a request awaits from lanes of others."""
        return len(self._shared.get(request.ticket.request_id, ()))

    @property
    def images_shared(self) -> int:
        """Images that are awaited from lanes of others, all requests together."""
        return sum(map(len, self._shared.values()))

    def start(
        self, denoiser: Denoiser, request: ActiveRequest, lanes: int, stats: StepStats
    ) -> list[Hit]:
        """Starts waiting images of a request until it has so many lanes more, or none waits.

        The lanes are those of `denoiser`.

        Returns:
            images that are here already, to be handed over.
        """
        hits: list[Hit] = []
        slot, fresh = request.slot, 0
        while lanes and self._queue.waiting[slot]:
            index = request.next_index
            key = key_of(request.spec, index)
            pixels, entry = self._cache.get(key), self._in_flight.get(key)
            if pixels is not None or entry is not None:
                self._join(denoiser, request, fresh)
                fresh = 0
            request.next_index += 1
            self._queue.waiting[slot] -= 1
            if pixels is not None:
                self._queue.forgo(slot, request.spec.work_per_image)
                hits.append((request, index, pixels))
                stats.cache_hits += 1
            elif entry is not None:
                stats.images_shared += 1
                lanes -= self._share(denoiser, entry, request, key)
            else:
                self._in_flight[key] = _InFlight(request)
                stats.images_started += 1
                fresh, lanes = fresh + 1, lanes - 1
        self._join(denoiser, request, fresh)
        return hits

    def finished(self, request: ActiveRequest, index: int, pixels: Pixels) -> list[ActiveRequest]:
        """Keeps the image of a lane that is at its end; returns who else waits for it."""
        if not self.takes_part(request):
            return []
        key = key_of(request.spec, index)
        self._cache.put(key, pixels)
        entry = self._in_flight.pop(key)
        for sharer in entry.sharers:
            self._shared[sharer.ticket.request_id].discard(key)
        return entry.sharers

    def sharers(self, lanes: LaneTable, which: Int64Array) -> list[ActiveRequest]:
        """Who else waits for the images of these lanes."""
        pairs = zip(lanes.request[which].tolist(), lanes.index[which].tolist(), strict=True)
        slots_and_indices = set(pairs)
        return [
            sharer
            for key, entry in self._in_flight.items()
            if entry.sharers and (entry.owner.slot, key[-1]) in slots_and_indices
            for sharer in entry.sharers
        ]

    def ended(self, request: ActiveRequest) -> None:
        """Takes a request out. Lanes of its that others wait for are theirs from now on."""
        for key in self._shared.pop(request.ticket.request_id, ()):
            self._in_flight[key].sharers.remove(request)
        if not self.takes_part(request) or not request.images_left:
            return
        for lanes in self._all_lanes():
            for lane in _lanes_of(lanes, request.slot):
                key = key_of(request.spec, int(lanes.index[lane]))
                entry = self._in_flight.get(key)
                if entry is None or entry.owner is not request:
                    continue  # a lane that is at its end
                if entry.sharers:
                    self._give(entry, entry.sharers[0], key, lanes, lane)
                else:
                    del self._in_flight[key]

    def _all_lanes(self) -> list[LaneTable]:
        """Running and set aside."""
        return [*(denoiser.lanes for denoiser in self._denoisers), self._denoisers[0].aside.lanes]

    def _join(self, denoiser: Denoiser, request: ActiveRequest, images: int) -> None:
        """Gives lanes to the last `images` images before the next one."""
        assert request.plan is not None
        denoiser.join(
            request.spec,
            request=request.slot,
            plan=request.plan,
            first_index=request.next_index - images,
            images=images,
        )

    def _share(self, denoiser: Denoiser, entry: _InFlight, request: ActiveRequest, key: Key) -> int:
        """Has a request wait for another's lane; returns how many lanes that takes (0 or 1).

        If it has less to do than the owner, the lane becomes its own, and runs: an urgent request
        must not wait for a lane that was set aside.
        """
        work, owner = request.spec.work_per_image, entry.owner
        self._queue.forgo(request.slot, work)
        entry.sharers.append(request)
        self._shared.setdefault(request.ticket.request_id, set()).add(key)
        if self._queue.work_left[request.slot] + work >= self._queue.work_left[owner.slot]:
            return 0
        aside = denoiser.aside
        for lanes in self._all_lanes():
            for lane in _lanes_of(lanes, owner.slot):
                if lanes.index[lane] == key[-1]:
                    rows = self._give(entry, request, key, lanes, lane)
                    self._queue.forgo(owner.slot, rows)
                    entry.sharers.append(owner)
                    self._shared.setdefault(owner.ticket.request_id, set()).add(key)
                    if lanes is not aside.lanes:
                        return 0
                    return denoiser.resume(request.slot, 1)
        return 0

    def _give(
        self, entry: _InFlight, sharer: ActiveRequest, key: Key, lanes: LaneTable, lane: int
    ) -> int:
        """Makes a sharer the owner of a lane; returns the rows that it still needs."""
        entry.owner = sharer
        entry.sharers.remove(sharer)
        self._shared[sharer.ticket.request_id].discard(key)
        rows = self._denoisers[0].plans.rows_left(
            int(lanes.plan[lane]), int(lanes.position[lane]), bool(lanes.guided[lane])
        )
        lanes.request[lane] = sharer.slot  # the plan's handle is that of the sharer too
        self._queue.take_up(sharer.slot, rows)
        return rows


def _lanes_of(lanes: LaneTable, slot: int) -> list[int]:
    found: list[int] = np.flatnonzero(lanes.request[: lanes.count] == slot).tolist()
    return found
