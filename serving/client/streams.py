"""Iteration over the images of one request, for both clients."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self

import grpc

from serving.client import errors
from serving.client.errors import ClientError
from serving.client.results import GeneratedImage, Preview, Summary
from serving.client.resumption import Resumption
from serving.client.retry import Attempts
from simple_diffusion.v1 import diffusion_pb2 as pb

# Whatever gRPC returns for a running call: an iterator that can be cancelled; in asyncio, with
# `read` in place of `__next__`. Its published types do not say so.
Responses = Any
Send = Callable[[str, pb.GenerateRequest, float], Responses]


class _Stream:
    """What both streams decide in the same way; no input and output here."""

    def __init__(self, resumption: Resumption, attempts: Attempts, send: Send) -> None:
        self._resumption = resumption
        self._attempts = attempts
        self._send = send
        self._responses: Responses = None
        self._over = False

    @property
    def seed(self) -> int:
        """The seed of the images."""
        return self._resumption.seed

    @property
    def summary(self) -> Summary | None:
        """How the images were made; None before the iteration is over."""
        return self._resumption.summary

    def _running(self) -> Responses:
        """The call to read from; a new one at the beginning and after a break."""
        if self._responses is None:
            attempts, request = self._attempts, self._resumption.request()
            self._responses = self._send(attempts.target, request, attempts.remaining_seconds())
            if self._over:  # closed by another thread, which had no call to cancel yet
                self._responses.cancel()
        return self._responses

    def _take(self, response: pb.GenerateStreamResponse) -> GeneratedImage | Preview | None:
        try:
            event = self._resumption.take(response)
        except ClientError:
            self._cancel()
            raise
        if isinstance(event, GeneratedImage):
            self._attempts.progressed()
        return event

    def _ended(self) -> None:
        """The server has said that the stream is over."""
        self._over = True
        if not self._resumption.complete:
            raise errors.incomplete(self._attempts.target)

    def _broke(self, error: grpc.RpcError) -> float:
        """Returns the seconds until the next attempt. Raises ClientError if there is none."""
        self._responses = None
        if self._over or self._resumption.complete:
            self._over = True
            return 0.0
        try:
            return self._attempts.after(errors.from_rpc_error(error, self._attempts.target))
        except ClientError:
            self._over = True
            raise

    def _cancel(self) -> None:
        self._over = True
        if self._responses is not None:
            self._responses.cancel()


class ImageStream(_Stream, Iterator[GeneratedImage | Preview]):
    """The images of one request, in the order in which they finish, and previews.

    The request is sent when the first event is asked for. Leave the iteration early through `with`
    or `close`, and the server stops drawing.
    """

    def __init__(
        self,
        resumption: Resumption,
        attempts: Attempts,
        send: Send,
        pause: Callable[[float], None],
    ) -> None:
        super().__init__(resumption, attempts, send)
        self._pause = pause

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> GeneratedImage | Preview:
        while not self._over:
            try:
                event = self._take(next(self._running()))
            except StopIteration:
                self._ended()
            except grpc.RpcError as error:
                self._pause(self._broke(error))
            else:
                if event is not None:
                    return event
        raise StopIteration

    def close(self) -> None:
        """Tells the server that nothing more is wanted, and ends the iteration."""
        self._cancel()


class AsyncImageStream(_Stream, AsyncIterator[GeneratedImage | Preview]):
    """`ImageStream` for asyncio: `async for`, `async with`, `aclose`."""

    def __init__(
        self,
        resumption: Resumption,
        attempts: Attempts,
        send: Send,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        super().__init__(resumption, attempts, send)
        self._pause = pause

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def __anext__(self) -> GeneratedImage | Preview:
        while not self._over:
            try:
                response = await self._running().read()
                if not isinstance(response, pb.GenerateStreamResponse):  # EOF
                    self._ended()
                elif (event := self._take(response)) is not None:
                    return event
            except grpc.RpcError as error:
                await self._pause(self._broke(error))
            except asyncio.CancelledError:
                if cancelled_from_outside():
                    raise
                # The call was cancelled and not the task: by aclose of the stream or the client.
                if not self._over:
                    self._over = True
                    raise errors.closed() from None
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Tells the server that nothing more is wanted, and ends the iteration."""
        self._cancel()


def cancelled_from_outside() -> bool:
    """Whether somebody cancels the task that runs, and not only the call it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
