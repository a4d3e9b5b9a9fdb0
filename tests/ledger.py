"""The client's side of the books: every request with its one final status."""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from serving.client import AsyncClient, ClientError, GeneratedImage
from tests.server_process import Samples, sample

SERVICE = "simple_diffusion.v1.DiffusionService"
SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "ddim_stochastic")
LONG: dict[str, Any] = {"count": 8, "num_steps": 1000, "sampler": "ddpm", "guidance_scale": 1.0}
"""Seconds of work: such a request can be cancelled, or run out of time, before it is finished."""


@dataclass
class Ledger:
    """What became of each request.

    Attributes:
        statuses: how many calls of each method ended with each status.
        images: how many images of each label were received.
        messages: how many messages of each method were received.
    """

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)

    async def generate(self, client: AsyncClient, label: int, count: int, **options: Any) -> str:
        """Calls Generate, writes down how it ended, and returns that."""

        async def call() -> None:
            made = await client.generate(label, count, **options)
            self.images[label] += len(made.images)
            self.messages["Generate"] += 1

        return await self._note("Generate", call())

    async def stream(self, client: AsyncClient, label: int, count: int, **options: Any) -> str:
        """Calls GenerateStream, reads it to its end, writes down how it ended, and returns that."""

        async def call() -> None:
            async with client.stream(label, count, **options) as events:
                async for event in events:
                    self.images[label] += isinstance(event, GeneratedImage)
                    self.messages["GenerateStream"] += 1
            self.messages["GenerateStream"] += 1  # the summary

        return await self._note("GenerateStream", call())

    async def _note(self, method: str, call: Coroutine[Any, Any, None]) -> str:
        try:
            await call
        except ClientError as error:
            code = error.code
        except asyncio.CancelledError:
            code = "CANCELLED"
        else:
            code = "OK"
        self.statuses[method, code] += 1
        return code

    def as_counters(self, model: str = "mnist") -> Samples:
        """Returns what a server must have counted that saw exactly these requests."""
        counted: Samples = {}
        started: Counter[str] = Counter()
        for (method, code), number in self.statuses.items():
            key = sample("diffusion_requests_finished_total", method=method, code=code)
            counted[key] = float(number)
            started[method] += number
        for method, number in started.items():
            counted[sample("diffusion_requests_started_total", method=method)] = float(number)
        for label, number in self.images.items():
            if number:
                key = sample("diffusion_images_total", model=model, label=str(label))
                counted[key] = float(number)
        return counted

    def as_grpc_counters(self) -> Samples:
        """Returns the same for the grpc_server_... metrics; every request arrived whole."""
        types = {"Generate": "unary", "GenerateStream": "server_stream"}
        labels = {
            method: {"grpc_type": kind, "grpc_service": SERVICE, "grpc_method": method}
            for method, kind in types.items()
        }
        counted: Samples = {}
        for (method, code), number in self.statuses.items():
            key = sample("grpc_server_handled_total", **labels[method], grpc_code=go_code(code))
            counted[key] = float(number)
            for name in ("grpc_server_started_total", "grpc_server_msg_received_total"):
                key = sample(name, **labels[method])
                counted[key] = counted.get(key, 0.0) + number
        for method, number in self.messages.items():
            counted[sample("grpc_server_msg_sent_total", **labels[method])] = float(number)
        return counted


def go_code(code: str) -> str:
    """The name of a status as Go writes it."""
    words = code.replace("CANCELLED", "CANCELED").split("_")
    return code if code == "OK" else "".join(map(str.title, words))


def digests(images: Iterable[GeneratedImage]) -> dict[int, str]:
    """sha256 of the pixels of each image, by its index."""
    return {image.index: hashlib.sha256(image.pixels.tobytes()).hexdigest() for image in images}


def mixed_options(chance: random.Random) -> dict[str, Any]:
    """A small request, unlike most others."""
    return {
        "label": chance.randrange(10),
        "count": chance.randint(1, 4),
        "seed": chance.getrandbits(64),
        "sampler": chance.choice(SAMPLERS),
        "num_steps": chance.randint(1, 6),
        "guidance_scale": chance.choice((1.0, 1.0, 0.0, 2.5)),
        "first_index": chance.choice((0, 0, 7)),
    }
