"""The JSON API: the same requests as over gRPC, for everybody who speaks HTTP."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serving import refusal, request_id
from serving.exchange import Exchange
from serving.http import answers, errors
from serving.http.body import read
from serving.http.event_stream import EventStream
from serving.http.negotiation import EVENTS, JSON, PNG, chosen, is_json
from serving.http.receiving import HttpCall, receive_body
from serving.refusal import RefusedError
from serving.service import DiffusionService
from serving.validation import Violation
from simple_diffusion.v1 import diffusion_pb2 as pb


def routes(service: DiffusionService) -> list[Route]:
    """Returns POST /v1/generate and GET /v1/models."""
    return [
        Route("/v1/generate", _Generate(service), methods=["POST"]),
        Route("/v1/models", _Models(service), methods=["GET"]),
    ]


class _Generate:
    """Draws. The Accept header says what comes back: JSON, one PNG, or events as they happen."""

    def __init__(self, service: DiffusionService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        request = Request(scope, receive)
        kind = chosen(request.headers.get("accept"), (JSON, PNG, EVENTS))
        if kind is None:
            message = f"this is answered with {JSON}, {PNG} or {EVENTS}"
            await errors.http_response(406, message)(scope, receive, send)
        elif not is_json(request.headers.get("content-type")):
            # A page of another site can send anything else without being asked for permission.
            message = f"the content-type of the body has to be {JSON}"
            await errors.http_response(415, message)(scope, receive, send)
        elif kind == EVENTS:
            await _answer(self._service, "HttpGenerateStream", request, send, self._stream)
        else:
            await _answer(
                self._service, "HttpGenerate", request, send, partial(self._whole, kind == PNG)
            )

    async def _whole(self, as_png: bool, asked: "_Asked") -> Response:
        return await self._service.generate(
            asked.exchange, partial(_read, asked.body, as_png), _png if as_png else _json
        )

    async def _stream(self, asked: "_Asked") -> None:
        stream = asked.stream
        async with stream.kept_alive():
            await self._service.generate_stream(
                asked.exchange, partial(read, asked.body), answers.event, stream.write, stream.begin
            )


class _Models:
    """Says what there is to draw."""

    def __init__(self, service: DiffusionService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        await _answer(self._service, "HttpListModels", Request(scope, receive), send, self._list)

    async def _list(self, _: "_Asked") -> Response:
        return Response(answers.json_body(self._service.list_models()), media_type=JSON)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that has arrived as a whole, and the answer that can be written to it in pieces."""

    exchange: Exchange
    body: bytes
    stream: EventStream


_Work = Callable[[_Asked], Awaitable[Response | None]]


async def _answer(
    service: DiffusionService, method: str, request: Request, send: Send, work: _Work
) -> None:
    """Gives a request its one status, and an answer if there is anybody left to read it.

    `work` returns the answer, or None once it has written it to the stream.
    """
    call = HttpCall(request)
    exchange = Exchange(method, call)
    headers = {request_id.KEY: exchange.request_id}
    stream = EventStream(send, headers)
    arrived = asyncio.Event()

    async def receive() -> _Asked:
        call.check()
        body = await receive_body(request)
        arrived.set()
        return _Asked(exchange, body, stream)

    async def answer() -> None:
        try:
            response = await service.exchanges.run(exchange, receive, work)
        except RefusedError as refused:
            if stream.begun:
                await stream.fail(errors.refused_fields(refused))
                return
            response = errors.refused_response(refused)
        if response is None:
            await stream.end()
            return
        response.headers.update(headers)
        await response(request.scope, request.receive, send)

    await _unless_gone(request.receive, arrived, answer())


async def _unless_gone(
    receive: Receive, arrived: asyncio.Event, answer: Coroutine[Any, Any, None]
) -> None:
    """Runs `answer` and cancels it when the client leaves, once its request has arrived."""

    async def gone() -> None:
        await arrived.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        answering.cancel()  # harmless if it is done
        with contextlib.suppress(asyncio.CancelledError):
            await answering


def _read(message: bytes, as_png: bool) -> pb.GenerateRequest:
    request = read(message)
    if as_png and request.format == pb.IMAGE_FORMAT_RAW_UINT8:
        text = f"IMAGE_FORMAT_RAW_UINT8 is not what the accept header asks for: {PNG}"
        raise refusal.invalid([Violation("format", text, "UNSUPPORTED")])
    return request


def _json(response: pb.GenerateResponse) -> Response:
    return Response(answers.json_body(response), media_type=JSON, headers=_timing(response))


def _png(response: pb.GenerateResponse) -> Response:
    headers = {"diffusion-seed": str(response.seed), **_timing(response)}
    return Response(answers.png_body(response), media_type=PNG, headers=headers)


def _timing(response: pb.GenerateResponse) -> dict[str, str]:
    queue, compute = response.queue_seconds * 1000, response.compute_seconds * 1000
    return {"server-timing": f"queue;dur={queue:.1f}, compute;dur={compute:.1f}"}
