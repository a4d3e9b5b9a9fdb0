"""The DiffusionService: admission, waiting, answers, and one true status for every request."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from serving import answers, refusal
from serving.answers import Accepted
from serving.delivery import Delivery, Ending, Parcel
from serving.engine_thread import EngineThread, EngineUnavailable
from serving.health import Phase, Readiness
from serving.metrics import Metrics
from serving.refusal import RefusedError
from serving.request import Outcome, QueueFull
from serving.validation import (
    MAX_GUIDANCE_SCALE,
    SAMPLER_NAMES,
    InvalidRequestError,
    ServedModel,
    Violation,
    validate,
)
from simple_diffusion.v1 import diffusion_pb2 as pb

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["DiffusionService"].full_name

MAX_REQUEST_BYTES = 64 * 1024
"""No legal request is larger than some hundred bytes; more is not even parsed."""

# A caller's RST_STREAM can reach the server a moment before the server's own timer for the same
# deadline fires. A cancellation this close to the deadline is counted as the deadline.
_DEADLINE_SLACK_SECONDS = 0.1

_ENCODER_THREADS = 2

_log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[bytes, bytes]
_MessageT = TypeVar("_MessageT", bound=Message)
_AnswerT = TypeVar("_AnswerT")


class DiffusionService:
    """Answers Generate, GenerateStream and ListModels. Belongs to one event loop.

    Requests are refused with UNAVAILABLE until `attach` has given the service its models and
    `readiness` says that it accepts.
    """

    def __init__(
        self, readiness: Readiness, metrics: Metrics, *, max_images_per_request: int = 1024
    ) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._max_images_per_request = max_images_per_request
        self._models: Mapping[str, ServedModel] = {}
        self._engine_thread: EngineThread | None = None
        self._deliveries: set[Delivery] = set()
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        # PNG encoding and protobuf assembly would hold up the event loop, so they run here.
        self._encoders = ThreadPoolExecutor(_ENCODER_THREADS, thread_name_prefix="encoder")

    def attach(self, models: list[ServedModel], engine_thread: EngineThread) -> None:
        """Gives the service its models, the default first, and the engines that run them."""
        self._models = {model.name: model for model in models}
        self._engine_thread = engine_thread

    def handler(self) -> "grpc.GenericRpcHandler[bytes, bytes]":
        """Returns what a grpc.aio server is given.

        There are no (de)serializers: undecodable bytes would otherwise never reach this class and
        end as UNKNOWN, and answers are assembled off the event loop.
        """
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Generate": grpc.unary_unary_rpc_method_handler(self.generate),
                "GenerateStream": grpc.unary_stream_rpc_method_handler(self.generate_stream),
                "ListModels": grpc.unary_unary_rpc_method_handler(self.list_models),
            },
        )

    async def generate(self, request: bytes, context: _Context) -> bytes:
        """Draws images and answers when all are finished."""
        return await self._answer(
            "Generate", context, lambda: self._generate(request, _time_remaining(context))
        )

    async def generate_stream(self, request: bytes, context: _Context) -> None:
        """Draws images and sends each as it finishes."""
        await self._answer(
            "GenerateStream", context, lambda: self._generate_stream(request, context)
        )

    async def list_models(self, request: bytes, context: _Context) -> bytes:
        """Says what there is to draw."""
        return await self._answer("ListModels", context, lambda: self._list_models(request))

    def abandon(self) -> None:
        """Ends every accepted request with UNAVAILABLE: this process will not finish them."""
        for delivery in self._deliveries:
            delivery.abandon(refusal.abandoned())

    async def wait_idle(self) -> None:
        """Waits until no request is active."""
        await self._idle.wait()

    @property
    def active(self) -> int:
        """How many requests have no status yet."""
        return self._active

    def close(self) -> None:
        """Stops the encoder threads."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def _answer(
        self, method: str, context: _Context, work: Callable[[], Awaitable[_AnswerT]]
    ) -> _AnswerT:
        """Runs one request and gives it exactly one status, counted before the client sees it."""
        start_seconds = time.monotonic()
        self._metrics.request_started(method)
        self._active += 1
        self._idle.clear()
        code = grpc.StatusCode.OK
        refused: RefusedError | None = None
        try:
            return await work()
        except RefusedError as error:
            refused = error
        except asyncio.CancelledError:
            # Only the client causes this (it left, or its deadline passed), so there is nobody to
            # answer. A cancellation that began here would leave the client waiting.
            remaining = _time_remaining(context)
            expired = remaining is not None and remaining <= _DEADLINE_SLACK_SECONDS
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # noqa: BLE001  (its text must not reach the client)
            refused = self._internal(method, error)
        finally:
            if refused is not None:
                code = refused.code
                if refused.reason:
                    self._metrics.request_refused(refused.reason)
            self._metrics.request_finished(method, code.name, time.monotonic() - start_seconds)
            _log.debug("%s %s", method, code.name)
            self._active -= 1
            if not self._active:
                self._idle.set()
        return await context.abort(refused.code, refused.message, refused.trailing_metadata)

    def _internal(self, method: str, error: Exception) -> RefusedError:
        error_id = secrets.token_hex(8)
        _log.error("%s failed, error id %s", method, error_id, exc_info=error)
        return refusal.internal(error_id)

    async def _generate(self, request: bytes, remaining_seconds: float | None) -> bytes:
        accepted = self._accept(request, remaining_seconds, streaming=False)
        parcel = await self._run(accepted, streaming=False, on_parcel=None)
        ending = parcel.ending
        assert ending is not None
        body = await self._off_loop(answers.response, accepted, parcel.images, ending)
        self._note_computed(accepted, ending)
        self._metrics.images_delivered(
            accepted.model.name, _label_name(accepted), len(parcel.images)
        )
        return body

    async def _generate_stream(self, request: bytes, context: _Context) -> None:
        accepted = self._accept(request, _time_remaining(context), streaming=True)

        async def send(parcel: Parcel) -> None:
            self._metrics.previews_dropped(accepted.model.name, parcel.previews_dropped)
            messages = await self._off_loop(answers.events, accepted, parcel)
            for position, message in enumerate(messages):
                await _write(context, message)
                if position < len(parcel.images):
                    self._metrics.images_delivered(accepted.model.name, _label_name(accepted), 1)

        parcel = await self._run(accepted, streaming=True, on_parcel=send)
        ending = parcel.ending
        assert ending is not None
        await _write(context, answers.summary_event(accepted, ending))
        self._note_computed(accepted, ending)

    async def _run(
        self,
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
            raise refusal.queue_full(full.waiting, full.limit, full.retry_after_seconds) from None
        except EngineUnavailable:
            raise refusal.unavailable(Phase.FAILED.value) from None
        self._deliveries.add(delivery)
        ending: Ending | None = None
        try:
            while True:
                parcel = await delivery.take()
                ending = parcel.ending
                if on_parcel is not None:
                    await on_parcel(parcel)
                if ending is not None:
                    _check(ending)
                    return parcel
        finally:
            self._deliveries.discard(delivery)
            if ending is None:
                self._engine_thread.cancel(handle)

    def _accept(
        self, request: bytes, remaining_seconds: float | None, *, streaming: bool
    ) -> Accepted:
        arrival_seconds = time.monotonic()
        self._require_accepting()
        message = _parse(pb.GenerateRequest, request)
        model = self._find_model(message.model)
        if remaining_seconds is not None and remaining_seconds <= 0:
            raise refusal.deadline_exceeded()
        deadline = None if remaining_seconds is None else arrival_seconds + remaining_seconds
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
        return Accepted(model, spec, message.format or pb.IMAGE_FORMAT_PNG)

    def _require_accepting(self) -> None:
        if not self._readiness.accepting or self._engine_thread is None:
            raise refusal.unavailable(self._readiness.phase.value)

    def _find_model(self, name: str) -> ServedModel:
        model = self._models.get(name) if name else next(iter(self._models.values()))
        if model is None:
            raise refusal.unknown_model(name, self._models)
        return model

    async def _list_models(self, request: bytes) -> bytes:
        if self._readiness.phase in (Phase.STARTING, Phase.FAILED):
            raise refusal.unavailable(self._readiness.phase.value)
        _parse(pb.ListModelsRequest, request)
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


def _parse(kind: type[_MessageT], request: bytes) -> _MessageT:
    if len(request) > MAX_REQUEST_BYTES:
        raise refusal.invalid(
            [
                Violation(
                    "request",
                    f"{len(request)} bytes; at most {MAX_REQUEST_BYTES} are accepted",
                    "TOO_LARGE",
                )
            ]
        )
    try:
        return kind.FromString(request)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise refusal.invalid(
            [Violation("request", f"these bytes are not a {name}", "NOT_DECODABLE")]
        ) from None


def _time_remaining(context: _Context) -> float | None:
    # None for a call without a deadline, whatever the published types say.
    return context.time_remaining()


async def _write(context: _Context, message: bytes) -> None:
    try:
        await context.write(message)
    except grpc.aio.BaseError as error:
        # The stream broke before the cancellation of this coroutine arrived: the client is gone.
        raise asyncio.CancelledError from error


def _label_name(accepted: Accepted) -> str:
    return accepted.model.label_names[accepted.spec.label]
