"""A gRPC server that gives everybody the same answer: what gRPC alone costs."""

import asyncio
import contextlib
import multiprocessing
from collections.abc import AsyncIterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import grpc

from serving.grpc_methods import SERVICE_NAME


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a request: a message, or a status that is not OK."""

    body: bytes
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailing_metadata: tuple[tuple[str, str | bytes], ...] = ()


def _serve(answer: Answer, port: Connection) -> None:
    async def generate(_: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        if answer.code is not grpc.StatusCode.OK:
            await context.abort(answer.code, answer.details, answer.trailing_metadata)
        return answer.body

    async def serve() -> None:
        server = grpc.aio.server()
        methods = {"Generate": grpc.unary_unary_rpc_method_handler(generate)}
        handler = grpc.method_handlers_generic_handler(SERVICE_NAME, methods)
        server.add_generic_rpc_handlers((handler,))
        port.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


@dataclass(frozen=True, slots=True)
class BareServer:
    """Where it is."""

    pid: int
    target: str


@contextlib.asynccontextmanager
async def running_bare_server(answer: Answer) -> AsyncIterator[BareServer]:
    """Runs one in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(answer, theirs), daemon=True)
    process.start()
    try:
        port = await asyncio.to_thread(ours.recv)
        assert process.pid is not None
        yield BareServer(process.pid, f"127.0.0.1:{port}")
    finally:
        process.kill()
        process.join()
