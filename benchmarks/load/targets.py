"""Whom the load is for: one class for each protocol, all drawing the same request."""

import asyncio
import base64
import functools
import json
from collections.abc import Callable
from typing import Any, Protocol, Self

import httpx
import numpy as np

from benchmarks.load.open_loop import Failed, Refused
from benchmarks.peers.drawing import SAMPLER, Drawing, Pixels
from serving.client import AsyncClient, ClientError

_REFUSALS = (429, 503)
_FOREVER_SECONDS = 3600.0


class Target(Protocol):
    """Something that draws digits. Use it in an `async with`."""

    async def __aenter__(self) -> Self:
        """Connects."""

    async def __aexit__(self, *_: object) -> None:
        """Disconnects."""

    async def draw(self, drawing: Drawing) -> Pixels:
        """Draws the images: uint8 [count, H, W].

        Raises:
            Refused: the target has no room.
            Failed: it did not draw them.
        """


class GrpcTarget:
    """Our server."""

    def __init__(self, address: str) -> None:
        self._client = AsyncClient(address, timeout_seconds=_FOREVER_SECONDS, retry=None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def draw(self, drawing: Drawing) -> Pixels:
        """See Target."""
        try:
            generation = await self._client.generate(
                drawing.label,
                drawing.count,
                seed=drawing.seed,
                sampler=SAMPLER,
                num_steps=drawing.num_steps,
                guidance_scale=1.0,
            )
        except ClientError as error:
            if error.code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"):
                raise Refused(str(error)) from error
            raise Failed(str(error)) from error
        return np.stack([image.pixels[:, :, 0] for image in generation.images])


class _HttpTarget:
    """What the targets that speak HTTP share.

    A client for each connection: with one for all of 192, httpx looks through all of them at every
    request, and took so much of two processors that a server had half of its throughput.
    """

    def __init__(self, address: str) -> None:
        self._make_client = functools.partial(
            httpx.AsyncClient,
            base_url=f"http://{address}",
            timeout=_FOREVER_SECONDS,
            limits=httpx.Limits(max_connections=1),
            verify=False,  # there is no TLS, and reading certificates takes a while
            # Compressing pixels costs the target time; and Triton then leaves out binary data.
            headers={"Accept-Encoding": "identity"},
        )
        self._clients: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.aclose()

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        if not self._idle:
            self._clients.append(self._make_client())
            self._idle.append(self._clients[-1])
        client = self._idle.pop()
        try:
            response = await client.post(path, json=body)
        except httpx.HTTPError as error:
            raise Failed(f"{type(error).__name__}: {error}") from error
        finally:
            self._idle.append(client)
        if response.status_code in _REFUSALS:
            raise Refused(f"status {response.status_code}")
        if response.status_code != httpx.codes.OK:
            raise Failed(f"status {response.status_code}: {response.text[:200]}")
        return response


class LitServeTarget(_HttpTarget):
    """benchmarks.peers.litserve_server."""

    async def draw(self, drawing: Drawing) -> Pixels:
        """See Target."""
        response = await self._post("/predict", json.loads(drawing.to_json()))
        return pixels_from_bytes(base64.b64decode(response.json()["images"]), drawing.count)


class TritonTarget(_HttpTarget):
    """benchmarks.peers.triton_server, in the KServe protocol with binary output."""

    async def draw(self, drawing: Drawing) -> Pixels:
        """See Target."""
        asked = json.loads(drawing.to_json())
        inputs = [
            {"name": name, "shape": [1, 1], "datatype": "INT64", "data": [int(value)]}
            for name, value in asked.items()
        ]
        outputs = [{"name": "images", "parameters": {"binary_data": True}}]
        body = {"inputs": inputs, "outputs": outputs}
        response = await self._post("/v2/models/digits/infer", body)
        header_bytes = int(response.headers["Inference-Header-Content-Length"])
        return pixels_from_bytes(response.content[header_bytes:], drawing.count)


class ProcessTarget:
    """benchmarks.peers.worker: a loop in a process of its own, one request after the other.

    Args:
        process: that answers a line with a line.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def draw(self, drawing: Drawing) -> Pixels:
        """See Target. Requests wait for their turn in the order in which they came."""
        await self._turn.acquire()
        answer = asyncio.ensure_future(self._ask(drawing.to_json()))
        # Also of a request that is given up meanwhile, the answer must be read before the next.
        answer.add_done_callback(self._answered)
        data = await asyncio.shield(answer)
        return pixels_from_bytes(base64.b64decode(data), drawing.count)

    def _answered(self, answer: asyncio.Future[bytes]) -> None:
        self._turn.release()
        if not answer.cancelled():
            answer.exception()  # of a request that was given up, nobody else asks for it

    async def _ask(self, line: str) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
            answer = await self._process.stdout.readline()
        except ConnectionError:
            answer = b""
        if not answer:
            raise Failed("the process has ended")
        return answer


TARGETS: dict[str, Callable[[str], Target]] = {
    "grpc": GrpcTarget,
    "litserve": LitServeTarget,
    "triton": TritonTarget,
}
"""Those with an address, by the name of the protocol."""


def pixels_from_bytes(data: bytes, count: int) -> Pixels:
    """Square images uint8 [count, H, W] from their bytes.

    Raises:
        Failed: if these are not so many images.
    """
    flat = np.frombuffer(data, dtype=np.uint8)
    side = int(np.sqrt(flat.size / count))
    if side == 0 or flat.size != count * side * side:
        raise Failed(f"{flat.size} bytes are not {count} square images")
    return flat.reshape(count, side, side)
