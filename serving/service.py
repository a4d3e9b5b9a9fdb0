"""The DiffusionService: admission, waiting, answers, and one true status for every request."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc

from serving import answers, refusal
from serving.answers import Accepted
from serving.delivery import Delivery, Ending, Parcel
from serving.engine_thread import EngineThread, EngineUnavailable
from serving.exchange import Exchange, Exchanges, Finished
from serving.health import Phase, Readiness
from serving.metrics import Metrics
from serving.parsing import parse
from serving.receiving import Context
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

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["DiffusionService"].full_name

_ENCODER_THREADS = 2

_AnswerT = TypeVar("_AnswerT")


class DiffusionService:
    """Answers Generate, GenerateStream and ListModels. Belongs to one event loop.

    Requests are refused with UNAVAILABLE until `attach` has given the service its models and
    `readiness` says that it accepts.
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
        self._engine_thread: EngineThread | None = None
        self._exchanges = Exchanges(metrics, tokens, on_finished)
        # PNG encoding and protobuf assembly would hold up the event loop, so they run here.
        self._encoders = ThreadPoolExecutor(_ENCODER_THREADS, thread_name_prefix="encoder")

    def attach(self, models: list[ServedModel], engine_thread: EngineThread) -> None:
        """Gives the service its models, the default first, and the engines that run them."""
        self._models = {model.name: model for model in models}
        self._engine_thread = engine_thread

    def replace(self, model: ServedModel) -> None:
        """Serves new requests with another version of a model, in its place."""
        self._models = {**self._models, model.name: model}

    def handler(self) -> "grpc.GenericRpcHandler[bytes, bytes]":
        """Returns what a grpc.aio server is given.

        There are no (de)serializers: undecodable bytes would otherwise never reach this class and
        end as UNKNOWN, and answers are assembled off the event loop. Why all requests are streams
        here stands in `serving.receiving`.
        """
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Generate": grpc.stream_unary_rpc_method_handler(self.generate),
                "GenerateStream": grpc.stream_stream_rpc_method_handler(self.generate_stream),
                "ListModels": grpc.stream_unary_rpc_method_handler(self.list_models),
            },
        )

    async def generate(self, _: object, context: Context) -> bytes:
        """Draws images and answers when all are finished."""
        return await self._exchanges.answer("Generate", context, self._generate)

    async def generate_stream(self, _: object, context: Context) -> None:
        """Draws images and sends each as it finishes."""
        await self._exchanges.answer("GenerateStream", context, self._generate_stream)

    async def list_models(self, _: object, context: Context) -> bytes:
        """Says what there is to draw."""
        return await self._exchanges.answer("ListModels", context, self._list_models)

    def abandon(self) -> None:
        """Ends every accepted request with UNAVAILABLE: this process will not finish them."""
        self._exchanges.abandon()

    async def wait_idle(self) -> None:
        """Waits until no request is active."""
        await self._exchanges.wait_idle()

    @property
    def active(self) -> int:
        """How many requests have arrived and have no status yet."""
        return self._exchanges.active

    def close(self) -> None:
        """Stops the encoder threads."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def _generate(self, exchange: Exchange, request: bytes) -> bytes:
        accepted = self._accept(exchange, request, streaming=False)
        parcel = await self._run(exchange, accepted, streaming=False, on_parcel=None)
        ending = parcel.ending
        assert ending is not None
        body = await self._off_loop(answers.response, accepted, parcel.images, ending)
        self._note_computed(accepted, ending)
        self._note_sent(exchange, accepted, len(parcel.images))
        return body

    async def _generate_stream(self, exchange: Exchange, request: bytes) -> None:
        accepted = self._accept(exchange, request, streaming=True)

        async def send(parcel: Parcel) -> None:
            self._metrics.previews_dropped(accepted.model.name, parcel.previews_dropped)
            messages = await self._off_loop(answers.events, accepted, parcel)
            for position, message in enumerate(messages):
                await _write(exchange.context, message)
                if position < len(parcel.images):
                    self._note_sent(exchange, accepted, 1)

        parcel = await self._run(exchange, accepted, streaming=True, on_parcel=send)
        ending = parcel.ending
        assert ending is not None
        await _write(exchange.context, answers.summary_event(accepted, ending))
        self._note_computed(accepted, ending)

    async def _run(
        self,
        exchange: Exchange,
        accepted: Accepted,
        *,
        streaming: bool,
        on_parcel: Callable[[Parcel], Awaitable[None]] | None,
    ) -> Parcel:
        """Has the engine draw; returns the last parcel. However this ends, the lanes are freed."""
        assert self._engine_thread is not None
        delivery = Delivery(asyncio.get_running_loop(), streaming=streaming)
        try:
            handle = self._engine_thread.submit(accepted.model.name, accepted.spec, delivery)
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
                self._engine_thread.cancel(handle)

    def _accept(self, exchange: Exchange, request: bytes, *, streaming: bool) -> Accepted:
        arrival_seconds, left_seconds = time.monotonic(), exchange.seconds_left
        if left_seconds is None:
            left_seconds = self._request_timeout_seconds
        self._require_accepting()
        message = parse(pb.GenerateRequest, request)
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
        if not self._readiness.accepting or self._engine_thread is None:
            raise refusal.unavailable(self._readiness.phase.value)

    def _find_model(self, name: str) -> ServedModel:
        model = self._models.get(name) if name else next(iter(self._models.values()))
        if model is None:
            raise refusal.unknown_model(name, self._models)
        return model

    async def _list_models(self, _: Exchange, request: bytes) -> bytes:
        if self._readiness.phase in (Phase.STARTING, Phase.FAILED):
            raise refusal.unavailable(self._readiness.phase.value)
        parse(pb.ListModelsRequest, request)
        response = pb.ListModelsResponse(
            models=[answers.describe(model) for model in self._models.values()],
            max_images_per_request=self._max_images_per_request,
            max_guidance_scale=MAX_GUIDANCE_SCALE,
            samplers=list(SAMPLER_NAMES),
        )
        return response.SerializeToString()

    async def _off_loop(self, function: Callable[..., _AnswerT], *arguments: object) -> _AnswerT:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoders, function, *arguments)

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


async def _write(context: Context, message: bytes) -> None:
    try:
        await context.write(message)
    except grpc.aio.BaseError as error:
        # The stream broke before the cancellation of this coroutine arrived: the client is gone.
        raise asyncio.CancelledError from error


def _label_name(accepted: Accepted) -> str:
    return accepted.model.label_names[accepted.spec.label]
