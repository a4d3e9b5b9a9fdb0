"""Counts the calls and messages of every service, as go-grpc-prometheus does.

Not an interceptor of some library: those see our methods as what they are registered as, streams,
and none that is kept up knows asyncio.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, NoReturn, cast

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from serving.metric_families import GRPC_CODES, GRPC_TYPES
from serving.metrics import CallMetrics, Metrics
from serving.receiving import Context, cancellation_code

Behaviour = Callable[[AsyncIterator[bytes], Context], Awaitable[Any]]


def counted(
    service: str, handler: "grpc.GenericRpcHandler[bytes, bytes]", metrics: Metrics
) -> "grpc.GenericRpcHandler[bytes, bytes]":
    """Returns a handler that counts the calls of another one.

    Args:
        service: its full name. Its methods are those of its descriptor that have a handler.
        handler: all of its methods are registered with streams of requests.
        metrics: where calls are counted; the series of each method exist from now on.
    """
    methods = {}
    for method in descriptor_pool.Default().FindServiceByName(service).methods:
        details = _Details(f"/{service}/{method.name}")
        inner = handler.service(cast("grpc.HandlerCallDetails", details))
        if inner is not None:
            calls = metrics.calls(_grpc_type(method), service, method.name)
            methods[method.name] = _counted(inner, calls)
    return grpc.method_handlers_generic_handler(service, methods)


class _Details(NamedTuple):
    """What a handler is asked with when there is no call yet."""

    method: str
    invocation_metadata: tuple[()] = ()


def _grpc_type(method: MethodDescriptor) -> str:
    unary, server_stream, client_stream, bidi_stream = GRPC_TYPES
    if method.client_streaming:
        return bidi_stream if method.server_streaming else client_stream
    return server_stream if method.server_streaming else unary


def _counted(
    inner: "grpc.RpcMethodHandler[bytes, bytes]", calls: CallMetrics
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    assert inner.request_streaming
    if inner.response_streaming:
        stream = cast("Behaviour", inner.stream_stream)

        async def answer_stream(requests: AsyncIterator[bytes], context: Context) -> None:
            await _CountedCall(calls, context).run(stream, requests)

        return grpc.stream_stream_rpc_method_handler(answer_stream)
    unary = cast("Behaviour", inner.stream_unary)

    async def answer_unary(requests: AsyncIterator[bytes], context: Context) -> Any:
        answer = await _CountedCall(calls, context).run(unary, requests)
        calls.sent()
        return answer

    return grpc.stream_unary_rpc_method_handler(answer_unary)


class _CountedCall:
    """The context of one call, as its method sees it: what goes through it is counted."""

    def __init__(self, calls: CallMetrics, context: Context) -> None:
        self._calls = calls
        self._context = context
        self._begin_seconds = time.monotonic()
        self._ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def run(self, behaviour: Behaviour, requests: AsyncIterator[bytes]) -> Any:
        """Runs the method. Its end is counted once, before the client sees it."""
        self._calls.started()
        try:
            answer = await behaviour(self._received(requests), cast("Context", self))
        except asyncio.CancelledError:
            self._end(cancellation_code(self._context.time_remaining()))
            raise
        except BaseException:
            self._end(grpc.StatusCode.UNKNOWN)  # unless it is that of abort()
            raise
        self._end(grpc.StatusCode.OK)
        return answer

    async def read(self) -> object:
        """As ServicerContext.read."""
        message = await self._context.read()
        if isinstance(message, bytes):  # not grpc.aio.EOF
            self._calls.received()
        return message

    async def write(self, message: bytes) -> None:
        """As ServicerContext.write."""
        await self._context.write(message)
        self._calls.sent()

    async def abort(self, code: grpc.StatusCode, *arguments: Any, **named: Any) -> NoReturn:
        """As ServicerContext.abort."""
        self._end(code)
        await self._context.abort(code, *arguments, **named)

    async def _received(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for request in requests:
            self._calls.received()
            yield request

    def _end(self, code: grpc.StatusCode) -> None:
        if not self._ended:
            self._ended = True
            number: int = code.value[0]
            self._calls.handled(GRPC_CODES[number], time.monotonic() - self._begin_seconds)
