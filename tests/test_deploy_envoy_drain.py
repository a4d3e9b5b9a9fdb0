"""docs/replicas.md: how an Envoy ends without losing a request."""

import asyncio
import contextlib
import re
import socket
import urllib.request
from typing import Any

import grpc
import pytest

from simple_diffusion.v1 import diffusion_pb2 as pb
from simple_diffusion.v1.diffusion_pb2_grpc import DiffusionServiceStub
from tests.edge_harness import running_edge
from tests.envoy_process import running_envoy
from tests.server_process import REPOSITORY

PAGE = (REPOSITORY / "docs" / "replicas.md").read_text("utf-8")
FLAGS = "--drain-time-s 10 --drain-strategy immediate"
DRAIN_SECONDS = "2"
ACTIVE = "http.grpc.downstream_rq_active"


def documented(command: str, admin_port: int) -> str:
    """The address that a command of the page asks, on this Envoy."""
    [path] = re.findall(rf"^{re.escape(command)} 'http://127.0.0.1:9901(/\S+)'", PAGE, re.MULTILINE)
    return f"http://127.0.0.1:{admin_port}{path}"


def fetched(request: urllib.request.Request | str) -> str:
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


async def test_what_runs_is_finished_and_nobody_new_is_taken() -> None:
    assert f"`{FLAGS}`" in PAGE
    flags = FLAGS.replace("10", DRAIN_SECONDS).split()
    async with contextlib.AsyncExitStack() as stack:
        edge = await stack.enter_async_context(running_edge())
        front = running_envoy([edge.port], flags=flags)
        envoy = await asyncio.to_thread(stack.enter_context, front)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(envoy.target))
        stub: Any = DiffusionServiceStub(channel)
        edge.hold()
        running = stub.Generate(pb.GenerateRequest(label=2, count=3), timeout=60)
        await edge.until(lambda: edge.service.exchanges.active == 1)
        statistics = documented("curl -s", envoy.admin_port)
        assert await asyncio.to_thread(fetched, statistics) == f"{ACTIVE}: 1\n"
        drain = urllib.request.Request(documented("curl -X POST", envoy.admin_port), method="POST")
        assert await asyncio.to_thread(fetched, drain) == "OK\n"
        async with asyncio.timeout(20):
            while await asyncio.to_thread(listens, envoy.port):
                await asyncio.sleep(0.05)
        edge.release()
        assert len((await running).images) == 3
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Generate(pb.GenerateRequest(label=2), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(20):
            while await asyncio.to_thread(fetched, statistics) != f"{ACTIVE}: 0\n":
                await asyncio.sleep(0.05)
