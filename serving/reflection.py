"""The gRPC reflection service, which tells tools what this server can be asked.

The stock servicer answers; what is around it is ours, because bytes that do not decode would
otherwise end as UNKNOWN, and because a server with tokens answers only those who have one.
"""

from collections.abc import AsyncIterator, Iterable

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.refusal import RefusedError
from serving.tokens import Tokens

SERVICE_NAME: str = reflection.SERVICE_NAME

_StockServicer = reflection.aio.ReflectionServicer  # type: ignore[attr-defined]  # it is public
_Context = grpc.aio.ServicerContext[bytes, bytes]


class Reflection:
    """The service grpc.reflection.v1alpha.ServerReflection.

    Args:
        services: the full names of the services there are, without this one.
        tokens: whose tokens are asked for; None asks for none.
    """

    def __init__(self, services: Iterable[str], tokens: Tokens | None = None) -> None:
        self._servicer = _StockServicer([*services, SERVICE_NAME])
        self._tokens = tokens

    def handler(self) -> "grpc.GenericRpcHandler[bytes, bytes]":
        """Returns what a grpc.aio server is given. Requests are parsed inside the method."""
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self.info)},
        )

    async def info(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        """Answers each request of a stream."""
        try:
            if self._tokens is not None:
                self._tokens.require(context.invocation_metadata())
        except RefusedError as refused:
            await context.abort(refused.code, refused.message)
        try:
            async for answer in self._servicer.ServerReflectionInfo(_parsed(requests), context):
                await context.write(answer.SerializeToString())
        except DecodeError:
            text = "the request is not a ServerReflectionRequest"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)


async def _parsed(
    requests: AsyncIterator[bytes],
) -> "AsyncIterator[reflection_pb2.ServerReflectionRequest]":
    async for request in requests:
        yield reflection_pb2.ServerReflectionRequest.FromString(request)
