"""Promise: HTTP is another way to the same service: equal pixels, one true status each."""

import asyncio
import base64
import contextlib
import hashlib
import random
from collections import Counter
from typing import Any

import httpx

from serving.client import AsyncClient
from tests.fault_figures import Record
from tests.http_harness import GENERATE, events
from tests.server_process import ServerProcess, counters, sample, total

REQUESTS = 60
RAW = {"format": "IMAGE_FORMAT_RAW_UINT8"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"label": 10}, "INVALID_ARGUMENT"),
    ({"label": "7"}, "INVALID_ARGUMENT"),
    ({"label": 1, "model": "other"}, "NOT_FOUND"),
]

Ledger = Counter[tuple[str, str]]


def digest(images: dict[int, bytes]) -> str:
    """One hash of all images, in the order of their indices."""
    return hashlib.sha256(b"".join(images[index] for index in sorted(images))).hexdigest()


async def generate(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[int, bytes]:
    """The images of an answer in JSON."""
    answer = await client.post(GENERATE, json={**body, **RAW})
    assert answer.status_code == 200, answer.text
    return {each["index"]: base64.b64decode(each["data"]) for each in answer.json()["images"]}


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[int, bytes]:
    """The images of a stream of events, with previews among them."""
    headers = {"accept": "text/event-stream"}
    asked = {**body, **RAW, "preview_every": 2}
    answer = await client.post(GENERATE, json=asked, headers=headers)
    assert answer.status_code == 200, answer.text
    found = events(answer.text)
    assert found[-1][0] == "summary"
    return {
        each["index"]: base64.b64decode(each["data"]) for kind, each in found if kind == "image"
    }


async def test_http_gives_the_pixels_of_grpc_and_every_request_its_one_status(
    mnist_server: ServerProcess, figure: Record
) -> None:
    chance = random.Random(7)
    ledger: Ledger = Counter()
    equal: list[bool] = []

    async def one(number: int, client: httpx.AsyncClient, grpc: AsyncClient) -> None:
        streaming = number % 2 == 1
        method = "HttpGenerateStream" if streaming else "HttpGenerate"
        ask = stream if streaming else generate
        if number % 5 == 0:
            body = {"label": 1, "count": 32, "num_steps": 1000}
            headers = {"accept": "text/event-stream"} if streaming else {}
            task = asyncio.create_task(client.post(GENERATE, json=body, headers=headers))
            await asyncio.sleep(0.3)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            ledger[method, "CANCELLED"] += 1
        elif number % 7 == 0:
            body, code = chance.choice(BAD)
            headers = {"accept": "text/event-stream"} if streaming else {}
            answer = await client.post(GENERATE, json=body, headers=headers)
            assert answer.json()["error"]["status"] == code
            ledger[method, code] += 1
        else:
            asked = {"label": chance.randrange(10), "count": chance.randrange(1, 9), "seed": number}
            drawn = await grpc.generate(asked["label"], asked["count"], seed=number)
            expected = {image.index: image.pixels.tobytes() for image in drawn.images}
            equal.append(digest(await ask(client, asked)) == digest(expected))
            ledger[method, "OK"] += 1
            ledger["Generate", "OK"] += 1

    before = await asyncio.to_thread(mnist_server.until_idle)
    address = f"http://127.0.0.1:{mnist_server.http_port}"
    async with (
        httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client,
        AsyncClient(mnist_server.target, retry=None) as grpc,
    ):
        for begin in range(0, REQUESTS, 10):
            await asyncio.gather(*(one(n, client, grpc) for n in range(begin, begin + 10)))
    after = await asyncio.to_thread(mnist_server.until_idle)
    counted = {
        key: value
        for key, value in counters(before, after).items()
        if key[0] == "diffusion_requests_finished_total"
    }
    expected = {
        sample("diffusion_requests_finished_total", method=method, code=code): float(count)
        for (method, code), count in ledger.items()
    }
    oks = ledger["HttpGenerate", "OK"] + ledger["HttpGenerateStream", "OK"]
    figure("pixels equal to those of gRPC", f"{sum(equal)} of {oks}", "all")
    figure("statuses counted as the ledger has them", f"{sum(counted.values()):.0f}", "all")
    assert sum(equal) == oks
    assert counted == expected
    started = "diffusion_requests_started_total"
    assert total(after, started) - total(before, started) == sum(ledger.values())
