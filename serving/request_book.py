"""The requests that an engine has accepted: who they are, and what is said to their sinks."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.lanes import BoolArray, Int64Array
from serving.request import GenerateSpec, Outcome, Sink

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Room in the queue that was promised to a request."""

    request_id: int
    submitted_seconds: float


@dataclass(slots=True, eq=False)
class ActiveRequest:
    """An accepted request, from enqueue() to done().

    Attributes:
        slot: its place in the arrays by slot.
        next_index: of the next image that gets a lane.
        images_left: images that were not handed over.
        plan: a PlanTable handle, once it has started.
        started_seconds: when its first image got a lane.
    """

    ticket: Ticket
    spec: GenerateSpec
    sink: Sink
    slot: int
    next_index: int
    images_left: int
    plan: int | None = None
    started_seconds: float | None = None


class RequestBook:
    """Requests by id while they are open, and by slot until their lanes are free.

    Attributes:
        ended: bool [slots], requests that are closed while their lanes are still to be freed.
    """

    def __init__(self, slots: int) -> None:
        self._open: dict[int, ActiveRequest] = {}
        self._by_slot: list[ActiveRequest | None] = [None] * slots
        self.ended: BoolArray = np.zeros(slots, dtype=np.bool_)
        self._ended_slots: list[int] = []

    def __len__(self) -> int:
        """Open requests."""
        return len(self._open)

    def open(self, ticket: Ticket, spec: GenerateSpec, sink: Sink, slot: int) -> None:
        """Enters a request."""
        request = ActiveRequest(ticket, spec, sink, slot, spec.first_index, spec.count)
        self._open[ticket.request_id] = self._by_slot[slot] = request

    def all(self) -> list[ActiveRequest]:
        """Every open request, in the order in which they came."""
        return list(self._open.values())

    def get(self, request_id: int) -> ActiveRequest | None:
        """The open request with this id."""
        return self._open.get(request_id)

    def at(self, slots: Int64Array) -> list[ActiveRequest]:
        """The requests of these slots, which are in use."""
        return [request for slot in slots.tolist() if (request := self._by_slot[slot]) is not None]

    def is_open(self, request: ActiveRequest) -> bool:
        """Whether its done() is still to be said."""
        return request.ticket.request_id in self._open

    def close(self, request: ActiveRequest) -> bool:
        """Takes an open request out; whether it was one. Whoever closes it says done()."""
        if self._open.pop(request.ticket.request_id, None) is None:
            return False
        self.ended[request.slot] = True
        self._ended_slots.append(request.slot)
        return True

    def free_ended(self, in_use: Int64Array) -> list[int]:
        """Forgets the closed requests; returns their slots.

        Args:
            in_use: int64 [N], slots that still have lanes: these are kept.
        """
        kept = set(self._ended_slots) & set(in_use.tolist()) if in_use.size else set()
        slots = [slot for slot in self._ended_slots if slot not in kept]
        self._ended_slots = list(kept)
        for slot in slots:
            self.ended[slot] = False
            self._by_slot[slot] = None
        return slots

    @property
    def any_ended(self) -> bool:
        """Whether free_ended has anything to do."""
        return bool(self._ended_slots)


def tell(request: ActiveRequest, method: Callable[..., None], *arguments: Any) -> bool:
    """Calls a method of a request's sink; whether that went well."""
    try:
        method(*arguments)
    except Exception:
        logger.exception("the sink of request %d raised", request.ticket.request_id)
        return False
    return True


def tell_done(request: ActiveRequest, outcome: Outcome, now_seconds: float, detail: str) -> None:
    """Says done() to a request's sink, with the times that it waited and ran."""
    started = now_seconds if request.started_seconds is None else request.started_seconds
    queue_seconds = started - request.ticket.submitted_seconds
    tell(request, request.sink.done, outcome, queue_seconds, now_seconds - started, detail)
