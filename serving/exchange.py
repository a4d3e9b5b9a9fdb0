"""One request and its one status: counted, and logged under an id that the client sees too."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Protocol, TypeVar

import grpc

from serving import refusal, request_id
from serving.answers import Accepted
from serving.delivery import Delivery, Ending
from serving.metrics import Metrics
from serving.receiving import DEADLINE_SLACK_SECONDS, cancellation_code
from serving.refusal import RefusedError
from serving.tokens import Tokens

_log = logging.getLogger(__name__)
_access_log = logging.getLogger("serving.access")

_MessageT = TypeVar("_MessageT")
_AnswerT = TypeVar("_AnswerT")


class Call(Protocol):
    """What is known of a caller, whatever protocol it speaks."""

    @property
    def system(self) -> str:
        """The protocol: grpc or http."""

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What came with the request, by keys in lower case."""

    @property
    def peer(self) -> str:
        """The caller's address, for the log. It may be gone once the connection is."""

    @property
    def seconds_left(self) -> float | None:
        """How long until the caller's deadline; None for a call without one."""


class Exchange:
    """One request, and what is known of it so far.

    Attributes:
        method: how it is called in the metrics and in the log.
        call: what is known of the caller.
        request_id: the client's own, or one that was drawn.
        accepted: what is asked for, once that is known to be possible.
        accepted_after_seconds: how long it took until then.
        delivery: what the engine has for it, once it has been handed over.
        ending: how it ended in the engine, once it has.
        images_sent: that gRPC has taken.
    """

    def __init__(self, method: str, call: Call) -> None:
        self.method = method
        self.call = call
        self.request_id = request_id.choose(call.metadata)
        self.accepted: Accepted | None = None
        self.accepted_after_seconds = 0.0
        self.delivery: Delivery | None = None
        self.ending: Ending | None = None
        self.images_sent = 0
        self._peer = call.peer
        self._start_seconds = time.monotonic()
        self._bounds = asyncio.timeout(None)
        self._abandoned = False

    def accept(self, accepted: Accepted) -> None:
        """Notes what is asked for, and sets the time by which it ends, whoever holds it up.

        The engine ends its part at the deadline itself, and knows more about it, so it is given a
        moment. This ends what the engine does not see: a stream that nobody reads.
        """
        self.accepted = accepted
        self.accepted_after_seconds = self.seconds
        deadline_seconds = accepted.spec.deadline_seconds
        if deadline_seconds is not None:
            self._bounds.reschedule(_loop_seconds(deadline_seconds + DEADLINE_SLACK_SECONDS))

    def abandon(self) -> None:
        """Ends it with UNAVAILABLE, wherever it is."""
        if not self._bounds.expired():
            self._abandoned = True
            self._bounds.reschedule(asyncio.get_running_loop().time())

    @contextlib.asynccontextmanager
    async def bounds(self) -> AsyncIterator[None]:
        """Surrounds the work on it.

        Raises:
            RefusedError: if its deadline or `abandon` ended the work.
        """
        try:
            async with self._bounds:
                yield
        except TimeoutError:
            if not self._bounds.expired():
                raise
            if self._abandoned:
                raise refusal.abandoned() from None
            raise refusal.deadline_exceeded() from None

    @property
    def phase(self) -> str:
        """How far it is: one of metric_families.PHASES."""
        if self.delivery is None:
            return "arriving"
        if self.delivery.has_ended:
            return "sending"
        return "running" if self.delivery.was_started else "queued"

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._start_seconds

    def fields(self, code: grpc.StatusCode, refused: RefusedError | None) -> dict[str, object]:
        """Returns what is logged of it at its end."""
        fields: dict[str, object] = {
            "method": self.method,
            "code": code.name,
            "request_id": self.request_id,
            "peer": self._peer,
            "seconds": self.seconds,
        }
        if self.accepted is not None:
            spec = self.accepted.spec
            fields |= {
                "model": self.accepted.model.name,
                "label": spec.label,
                "count": spec.count,
                "first_index": spec.first_index,
                "seed": spec.seed,
                "sampler": spec.sampler,
                "num_steps": spec.num_steps,
                "guidance_scale": spec.guidance_scale,
            }
        if self.ending is not None:
            fields["queue_seconds"] = self.ending.queue_seconds
            fields["compute_seconds"] = self.ending.compute_seconds
        if refused is not None:
            fields["refusal"] = refused.message
        return fields


Finished = Callable[[Exchange, grpc.StatusCode], None]


class Exchanges:
    """The requests of a service. Belongs to one event loop.

    Args:
        metrics: where they are counted.
        tokens: whose tokens are asked for; None asks for none.
        on_finished: told of each request that has ended, and how.
    """

    def __init__(
        self,
        metrics: Metrics,
        tokens: Tokens | None = None,
        on_finished: Finished | None = None,
    ) -> None:
        self._metrics = metrics
        self._tokens = tokens
        self._on_finished = on_finished
        self._open: set[Exchange] = set()
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """How many requests have arrived and have no status yet."""
        return self._active

    async def wait_idle(self) -> None:
        """Waits until no request is active."""
        await self._idle.wait()

    def abandon(self) -> None:
        """Ends every request with UNAVAILABLE, also those that have not arrived as a whole."""
        for exchange in self._open:
            exchange.abandon()

    async def run(
        self,
        exchange: Exchange,
        receive: Callable[[], Awaitable[_MessageT]],
        work: Callable[[_MessageT], Awaitable[_AnswerT]],
    ) -> _AnswerT:
        """Runs one request and gives it exactly one status, counted before the client sees it.

        Args:
            exchange: the request.
            receive: waits for its message.
            work: is given the message.

        Raises:
            RefusedError: what the client is to be told.
            CancelledError: the client has left, or its deadline has passed; nobody is there to be
                told anything.
        """
        self._metrics.request_started(exchange.method)
        self._open.add(exchange)
        code = grpc.StatusCode.OK
        refused: RefusedError | None = None
        try:
            async with exchange.bounds():
                if self._tokens is not None:
                    self._tokens.require(exchange.call.metadata)
                message = await receive()
                with self._being_active():
                    return await work(message)
        except RefusedError as error:
            refused = error
        except asyncio.CancelledError:
            # Only the client causes this (it left, or its deadline passed), so there is nobody to
            # answer. A cancellation that began here would leave the client waiting.
            code = cancellation_code(exchange.call.seconds_left)
            if code is grpc.StatusCode.CANCELLED:
                self._metrics.request_cancelled(exchange.phase)
            raise
        except Exception as error:  # noqa: BLE001  (its text must not reach the client)
            refused = _internal(exchange, error)
        finally:
            self._finish(exchange, code if refused is None else refused.code, refused)
        raise refused

    def _finish(
        self, exchange: Exchange, code: grpc.StatusCode, refused: RefusedError | None
    ) -> None:
        if refused is not None and refused.reason:
            self._metrics.request_refused(refused.reason)
        self._metrics.request_finished(exchange.method, code.name, exchange.seconds)
        if _access_log.isEnabledFor(logging.INFO):
            _access_log.info("request", extra={"fields": exchange.fields(code, refused)})
        self._tell(exchange, code)
        self._open.remove(exchange)

    @contextlib.contextmanager
    def _being_active(self) -> Iterator[None]:
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    def _tell(self, exchange: Exchange, code: grpc.StatusCode) -> None:
        if self._on_finished is None:
            return
        try:
            self._on_finished(exchange, code)
        except Exception:  # noqa: BLE001
            # Whoever watches must not change what a client is answered.
            _log.exception("on_finished raised")


def _loop_seconds(monotonic_seconds: float) -> float:
    """Returns a time of time.monotonic on the event loop's clock."""
    return asyncio.get_running_loop().time() + monotonic_seconds - time.monotonic()


def _internal(exchange: Exchange, error: Exception) -> RefusedError:
    fields = {"request_id": exchange.request_id}
    _log.error("%s failed", exchange.method, exc_info=error, extra={"fields": fields})
    return refusal.internal(exchange.request_id)
