"""What both edges ask: admission, waiting and answers, whatever protocol the caller speaks."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving import answers, refusal
from serving.answers import Accepted
from serving.delivery import Delivery, Ending, Parcel
from serving.engine_threads import EngineThreads, EngineUnavailable
from serving.exchange import Exchange, Exchanges, Finished
from serving.health import Phase, Readiness
from serving.metrics import Metrics
from serving.request import DeadlineUnmeetable, Outcome, QueueFull
from serving.tokens import Tokens
from serving.validation import (
    MAX_GUIDANCE_SCALE,
    SAMPLER_NAMES,
    InvalidRequestError,
    ServedModel,
    validate,
)
from simple_diffusion.v1 import diffusion_pb2 as pb

_ENCODER_THREADS = 2

QUICK_VALUES = 4096
"""Pixel values that are encoded about as quickly as they are handed to another thread and back."""

_AnswerT = TypeVar("_AnswerT")

Read = Callable[[], pb.GenerateRequest]


class DiffusionService:
    """Draws, and says what can be drawn. Belongs to one event loop.

    Requests are refused with UNAVAILABLE until `attach` has given the service its models and
    `readiness` says that it accepts. Its methods run inside `exchanges.run`.

    Attributes:
        exchanges: where every request gets its one status.
        needs_token: whether requests need one.
    """

    def __init__(
        self,
        readiness: Readiness,
        metrics: Metrics,
        *,
        max_images_per_request: int = 1024,
        request_timeout_seconds: float = 1800.0,
        tokens: Tokens | None = None,
        on_finished: Finished | None = None,
    ) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._max_images_per_request = max_images_per_request
        self._request_timeout_seconds = request_timeout_seconds
        self._models: Mapping[str, ServedModel] = {}
        self._engine_threads: EngineThreads | None = None
        self.needs_token = tokens is not None
        self.exchanges = Exchanges(metrics, tokens, on_finished)
        # PNG encoding and protobuf assembly of many images would hold up the event loop.
        self._encoders = ThreadPoolExecutor(_ENCODER_THREADS, thread_name_prefix="encoder")

    def attach(self, models: list[ServedModel], engine_threads: EngineThreads) -> None:
        """Gives the service its models, the default first, and the engines that run them."""
        self._models = {model.name: model for model in models}
        self._engine_threads = engine_threads

    def replace(self, model: ServedModel) -> None:
        """Serves new requests with another version of a model, in its place."""
        self._models = {**self._models, model.name: model}

    async def generate(
        self,
        exchange: Exchange,
        read: Read,
        encode: Callable[[pb.GenerateResponse], _AnswerT],
    ) -> _AnswerT:
        """Draws images and answers when all are finished.

        Args:
            exchange: the request.
            read: returns what it asks for; may raise RefusedError.
            encode: turns the answer into what the caller understands; on a thread of its own,
                unless it is short.
        """
        accepted = self._accept(exchange, read, streaming=False)
        parcel = await self._run(exchange, accepted)
        ending = parcel.ending
        assert ending is not None

        def assemble() -> _AnswerT:
            return encode(answers.response(accepted, parcel.images, ending))

        body = await self._encoded(accepted, len(parcel.images), assemble)
        self._note_computed(accepted, ending)
        self._note_sent(exchange, accepted, len(parcel.images))
        return body

    async def generate_stream(
        self,
        exchange: Exchange,
        read: Read,
        encode: Callable[[pb.GenerateStreamResponse], bytes],
        write: Callable[[bytes], Awaitable[None]],
        on_accepted: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Draws images and sends each as it finishes.

        Args:
            exchange: the request.
            read: returns what it asks for; may raise RefusedError.
            encode: turns an event into what the caller understands; on a thread of its own,
                unless it is short.
            write: sends one event and waits while the caller is behind.
            on_accepted: awaited once the request is certain to be worked on.
        """
        accepted = self._accept(exchange, read, streaming=True)

        async def send(parcel: Parcel) -> None:
            self._metrics.previews_dropped(accepted.model.name, parcel.previews_dropped)
            messages = await self._encoded(
                accepted,
                len(parcel.images) + len(parcel.previews),
                lambda: [encode(event) for event in answers.events(accepted, parcel)],
            )
            for position, message in enumerate(messages):
                await write(message)
                if position < len(parcel.images):
                    self._note_sent(exchange, accepted, 1)

        parcel = await self._run(exchange, accepted, on_accepted=on_accepted, on_parcel=send)
        ending = parcel.ending
        assert ending is not None
        await write(encode(answers.summary_event(accepted, ending)))
        self._note_computed(accepted, ending)

    def list_models(self) -> pb.ListModelsResponse:
        """Says what there is to draw.

        Raises:
            RefusedError: UNAVAILABLE, while that is not known, or when nothing can be drawn.
        """
        if self._readiness.phase in (Phase.STARTING, Phase.FAILED):
            raise refusal.unavailable(self._readiness.phase.value)
        return pb.ListModelsResponse(
            models=[answers.describe(model) for model in self._models.values()],
            max_images_per_request=self._max_images_per_request,
            max_guidance_scale=MAX_GUIDANCE_SCALE,
            samplers=list(SAMPLER_NAMES),
        )

    def close(self) -> None:
        """Stops the encoder threads."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def _run(
        self,
        exchange: Exchange,
        accepted: Accepted,
        *,
        on_accepted: Callable[[], Awaitable[None]] | None = None,
        on_parcel: Callable[[Parcel], Awaitable[None]] | None = None,
    ) -> Parcel:
        """Has the engine draw; returns the last parcel. However this ends, the lanes are freed."""
        assert self._engine_threads is not None
        delivery = Delivery(asyncio.get_running_loop(), streaming=on_parcel is not None)
        try:
            handle = self._engine_threads.submit(accepted.model.name, accepted.spec, delivery)
        except QueueFull as full:
            raise refusal.queue_full(
                full.waiting, full.limit, full.retry_after_seconds, full.what
            ) from None
        except DeadlineUnmeetable as late:
            raise refusal.deadline_unmeetable(
                late.estimate_seconds, late.left_seconds, late.retry_after_seconds
            ) from None
        except EngineUnavailable:
            raise refusal.unavailable(Phase.FAILED.value) from None
        exchange.delivery = delivery
        ending: Ending | None = None
        try:
            if on_accepted is not None:
                await on_accepted()
            while True:
                parcel = await delivery.take()
                ending = exchange.ending = parcel.ending
                if on_parcel is not None:
                    await on_parcel(parcel)
                if ending is not None:
                    _check(ending)
                    return parcel
        finally:
            if ending is None:
                self._engine_threads.cancel(handle)

    def _accept(self, exchange: Exchange, read: Read, *, streaming: bool) -> Accepted:
        arrival_seconds, left_seconds = time.monotonic(), exchange.call.seconds_left
        if left_seconds is None:
            left_seconds = self._request_timeout_seconds
        self._require_accepting()
        message = read()
        model = self._find_model(message.model)
        if left_seconds <= 0:
            raise refusal.deadline_exceeded()
        deadline = arrival_seconds + left_seconds
        try:
            spec = validate(
                message,
                model,
                max_images_per_request=self._max_images_per_request,
                streaming=streaming,
                deadline_seconds=deadline,
            )
        except InvalidRequestError as error:
            raise refusal.invalid(error.violations) from None
        accepted = Accepted(model, spec, message.format or pb.IMAGE_FORMAT_PNG)
        exchange.accept(accepted)
        return accepted

    def _require_accepting(self) -> None:
        if not self._readiness.accepting or self._engine_threads is None:
            raise refusal.unavailable(self._readiness.phase.value)

    def _find_model(self, name: str) -> ServedModel:
        model = self._models.get(name) if name else next(iter(self._models.values()))
        if model is None:
            raise refusal.unknown_model(name, self._models)
        return model

    async def _encoded(
        self, accepted: Accepted, images: int, encode: Callable[[], _AnswerT]
    ) -> _AnswerT:
        """Has so many images encoded without holding up the event loop."""
        model = accepted.model
        if images * model.channels * model.height * model.width <= QUICK_VALUES:
            return encode()
        return await asyncio.get_running_loop().run_in_executor(self._encoders, encode)

    def _note_sent(self, exchange: Exchange, accepted: Accepted, images: int) -> None:
        model = accepted.model.name
        if not exchange.images_sent:
            self._metrics.first_image_sent(exchange.method, model, exchange.seconds)
        exchange.images_sent += images
        self._metrics.images_delivered(model, _label_name(accepted), images)

    def _note_computed(self, accepted: Accepted, ending: Ending) -> None:
        self._metrics.request_computed(
            accepted.model.name, ending.queue_seconds, ending.compute_seconds
        )


class NetworkFailedError(Exception):
    """The network failed for a request; the text is for the log."""


def _check(ending: Ending) -> None:
    match ending.outcome:
        case Outcome.FINISHED:
            return
        case Outcome.DEADLINE_EXCEEDED:
            raise refusal.deadline_exceeded()
        case Outcome.CANCELLED:
            # The engine gave the request up by itself: the client's own cancellation never gets
            # here. The images can be had by asking again.
            raise refusal.abandoned()
        case Outcome.NETWORK_FAILED:
            raise NetworkFailedError(ending.detail)


def _label_name(accepted: Accepted) -> str:
    return accepted.model.label_names[accepted.spec.label]
