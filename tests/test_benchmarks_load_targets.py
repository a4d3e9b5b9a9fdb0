"""The protocols of the targets: what is asked, and what an answer means."""

import asyncio
import base64
import functools
import json
import sys
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.load.open_loop import Failed, Refused
from benchmarks.load.targets import (
    GrpcTarget,
    LitServeTarget,
    ProcessTarget,
    TritonTarget,
    pixels_from_bytes,
)
from benchmarks.peers.drawing import Drawing
from tests.server_process import ServerProcess

DRAWING = Drawing(label=3, count=2, num_steps=4, seed=7)
PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)

# Answers each line after a moment with a 1 x 1 image: how many lines there were before.
PROGRAM = """
import base64, sys, time
for number, line in enumerate(sys.stdin):
    time.sleep(0.2)
    print(base64.b64encode(bytes([number])).decode(), flush=True)
"""


def answering(target: Any, response: httpx.Response) -> list[httpx.Request]:
    """Has a target's requests answered so; returns where they are noted."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return response

    transport = httpx.MockTransport(handle)
    target._make_client = functools.partial(
        httpx.AsyncClient, base_url="http://target", transport=transport
    )
    return seen


async def test_our_server_is_asked_for_what_the_peers_are_asked_for(
    mnist_server: ServerProcess,
) -> None:
    async with GrpcTarget(mnist_server.target) as target:
        images = await target.draw(DRAWING)
        with pytest.raises(Failed, match="num_steps"):
            await target.draw(Drawing(label=3, count=1, num_steps=100_000, seed=0))
    assert images.shape == (2, 28, 28)
    assert images.dtype == np.uint8


async def test_a_server_that_is_not_there_refuses() -> None:
    async with GrpcTarget("127.0.0.1:1") as target:
        with pytest.raises(Refused):
            await target.draw(DRAWING)


async def test_litserve_is_asked_in_json() -> None:
    async with LitServeTarget("target") as target:
        content = {"images": base64.b64encode(PIXELS.tobytes()).decode()}
        seen = answering(target, httpx.Response(200, json=content))
        assert np.array_equal(await target.draw(DRAWING), PIXELS)
    assert Drawing(**json.loads(seen[0].content)) == DRAWING


async def test_triton_is_asked_in_its_protocol_with_binary_output() -> None:
    header = b'{"outputs": []}'
    length = {"Inference-Header-Content-Length": str(len(header))}
    async with TritonTarget("target") as target:
        response = httpx.Response(200, content=header + PIXELS.tobytes(), headers=length)
        seen = answering(target, response)
        assert np.array_equal(await target.draw(DRAWING), PIXELS)
    asked = json.loads(seen[0].content)
    values = {each["name"]: each["data"] for each in asked["inputs"]}
    assert values == {
        "label": [3], "count": [2], "num_steps": [4], "seed": [7], "shared_noise": [0],
    }  # fmt: skip
    assert asked["outputs"][0]["parameters"] == {"binary_data": True}


async def test_each_connection_has_a_client_of_its_own_which_is_used_again_and_closed() -> None:
    made: list[httpx.AsyncClient] = []
    content = {"images": base64.b64encode(PIXELS.tobytes()).decode()}

    async def handle(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.01)
        return httpx.Response(200, json=content)

    def make() -> httpx.AsyncClient:
        transport = httpx.MockTransport(handle)
        made.append(httpx.AsyncClient(base_url="http://target", transport=transport))
        return made[-1]

    async with LitServeTarget("target") as target:
        target._make_client = make  # type: ignore[assignment]
        for _ in range(3):
            await target.draw(DRAWING)
        assert len(made) == 1
        await asyncio.gather(*(target.draw(DRAWING) for _ in range(5)))
        assert len(made) == 5
    assert all(client.is_closed for client in made)


@pytest.mark.parametrize(("status", "error"), [(429, Refused), (503, Refused), (500, Failed)])
async def test_a_status_is_a_refusal_or_a_failure(status: int, error: type[Exception]) -> None:
    async with LitServeTarget("target") as target:
        answering(target, httpx.Response(status))
        with pytest.raises(error, match=str(status)):
            await target.draw(DRAWING)


async def test_the_answer_of_a_request_that_was_given_up_is_not_taken_for_the_next() -> None:
    piped = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-c", PROGRAM, stdin=piped, stdout=piped
    )
    try:
        target = ProcessTarget(process)
        one = Drawing(0, 1, 1, 0)
        given_up = asyncio.create_task(target.draw(one))
        await asyncio.sleep(0.05)  # it is on its way
        given_up.cancel()
        assert (await target.draw(one)).tolist() == [[[1]]]
        process.kill()
        await process.wait()
        with pytest.raises(Failed, match="has ended"):
            await target.draw(one)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(("size", "count"), [(10, 2), (0, 1), (8, 1)])
def test_bytes_that_are_not_square_images_are_a_failure(size: int, count: int) -> None:
    with pytest.raises(Failed, match="square"):
        pixels_from_bytes(bytes(size), count)
