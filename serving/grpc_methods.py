"""The methods of the gRPC service: bytes in, bytes out, one status each."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import grpc

from serving import request_id
from serving.exchange import Exchange
from serving.parsing import parse
from serving.receiving import Context, GrpcCall, receive
from serving.refusal import RefusedError
from serving.service import DiffusionService
from simple_diffusion.v1 import diffusion_pb2 as pb

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["DiffusionService"].full_name

_AnswerT = TypeVar("_AnswerT")


class GrpcMethods:
    """Answers Generate, GenerateStream and ListModels."""

    def __init__(self, service: DiffusionService) -> None:
        self._service = service

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
        exchange = Exchange("Generate", GrpcCall(context))

        async def work(message: bytes) -> bytes:
            read = partial(parse, pb.GenerateRequest, message)
            return await self._service.generate(
                exchange, read, pb.GenerateResponse.SerializeToString
            )

        return await self._answer(exchange, context, work)

    async def generate_stream(self, _: object, context: Context) -> None:
        """Draws images and sends each as it finishes."""
        exchange = Exchange("GenerateStream", GrpcCall(context))

        async def work(message: bytes) -> None:
            await self._service.generate_stream(
                exchange,
                partial(parse, pb.GenerateRequest, message),
                pb.GenerateStreamResponse.SerializeToString,
                partial(_write, context),
            )

        await self._answer(exchange, context, work)

    async def list_models(self, _: object, context: Context) -> bytes:
        """Says what there is to draw."""

        async def work(message: bytes) -> bytes:
            models = self._service.list_models()
            parse(pb.ListModelsRequest, message)
            return models.SerializeToString()

        return await self._answer(Exchange("ListModels", GrpcCall(context)), context, work)

    async def _answer(
        self, exchange: Exchange, context: Context, work: Callable[[bytes], Awaitable[_AnswerT]]
    ) -> _AnswerT:
        trailing_metadata = ((request_id.KEY, exchange.request_id),)
        context.set_trailing_metadata(trailing_metadata)
        try:
            return await self._service.exchanges.run(exchange, partial(receive, context), work)
        except RefusedError as error:
            refused = error
        return await context.abort(
            refused.code, refused.message, (*trailing_metadata, *refused.trailing_metadata)
        )


async def _write(context: Context, message: bytes) -> None:
    try:
        await context.write(message)
    except grpc.aio.BaseError as error:
        # The stream broke before the cancellation of this coroutine arrived: the client is gone.
        raise asyncio.CancelledError from error
