"""What a request costs the server outside of the network, against gRPC alone. Linux only.

    python -m benchmarks.edge_cost

CPU time of everything in the server's process but its busiest thread, which is the engine's, for
each request that is accepted and for each that a full queue refuses. Beside it, in turns, a bare
grpc.aio server that sends the very same answers and does nothing else. Whoever has no turn is
stopped. CPU time grows on a machine that is busy with other things; the ratio less.
"""

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc

from benchmarks.bare_grpc_server import Answer, running_bare_server
from benchmarks.capacity import Replica, running_replica
from benchmarks.process_tree import cpu_seconds_of_threads
from simple_diffusion.v1 import diffusion_pb2 as pb
from simple_diffusion.v1.diffusion_pb2_grpc import DiffusionServiceStub

_HELD_IMAGES = 1024
_HELD_SECONDS = 86_400.0
_CALL_SECONDS = 60.0
_WARM_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """Equal requests, evenly spaced.

    Attributes:
        name: for the report.
        per_second: how many; so few that each is on its own at the edge.
        count: images of each.
        flags: of the server.
    """

    name: str
    per_second: int
    count: int
    flags: tuple[str, ...]


ACCEPTED = Load("accepted", 30, 1, ("--max-lanes", "32"))
REFUSED = Load(
    "refused", 200, _HELD_IMAGES,
    ("--max-lanes", "1", "--max-queued-images", str(_HELD_IMAGES),
     "--max-images-per-request", str(_HELD_IMAGES)),
)  # fmt: skip


class Asked:
    """A server and how it is asked."""

    def __init__(self, pid: int, channel: grpc.aio.Channel, *, has_engine: bool) -> None:
        self._pid = pid
        self._stub = DiffusionServiceStub(channel)
        self._has_engine = has_engine

    async def ask(self, load: Load) -> Answer:
        """One request."""
        message = pb.GenerateRequest(
            label=1, count=load.count, sampler=pb.SAMPLER_DDPM, num_steps=10, guidance_scale=1.0
        )
        try:
            response = await self._stub.Generate(message, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            trailing: Any = tuple(error.trailing_metadata() or ())
            return Answer(b"", error.code(), error.details() or "", trailing)
        return Answer(response.SerializeToString())

    async def cost(self, load: Load, seconds: float, code: grpc.StatusCode) -> float:
        """CPU seconds for each request of so many seconds, all of which have to end with `code`."""
        os.kill(self._pid, signal.SIGCONT)
        await self._send(load, _WARM_SECONDS)
        before = cpu_seconds_of_threads(self._pid)
        answers = await self._send(load, seconds)
        after = cpu_seconds_of_threads(self._pid)
        self.stop()
        if any(answer.code is not code for answer in answers):
            raise click.ClickException(f"not every request ended with {code.name}")
        spent = [value - before.get(thread, 0.0) for thread, value in after.items()]
        return (sum(spent) - (max(spent) if self._has_engine else 0.0)) / len(answers)

    def stop(self) -> None:
        """Until its turn."""
        os.kill(self._pid, signal.SIGSTOP)

    async def _send(self, load: Load, seconds: float) -> list[Answer]:
        begin, asked = time.monotonic(), []
        for number in range(max(1, round(load.per_second * seconds))):
            await asyncio.sleep(max(0.0, begin + number / load.per_second - time.monotonic()))
            asked.append(asyncio.create_task(self.ask(load)))
        return await asyncio.gather(*asked)


@dataclass(frozen=True, slots=True)
class Cost:
    """What every request got, and CPU seconds for each in each turn: ours, and gRPC's alone."""

    answer: Answer
    ours: tuple[float, ...]
    bare: tuple[float, ...]

    def summary(self, name: str) -> str:
        """One line."""
        ours, bare = statistics.median(self.ours), statistics.median(self.bare)
        ratios = [one / other for one, other in zip(self.ours, self.bare, strict=True)]
        return (
            f"{name} ({self.answer.code.name}): {1000 * ours:.2f} ms, gRPC alone {1000 * bare:.2f}"
            f" ms; {statistics.median(ratios):.2f} times, median of {len(ratios)} turns"
        )


async def measure(model: Path, load: Load, *, turns: int, turn_seconds: float) -> Cost:
    """Lets both servers take turns.

    Args:
        model: the bundle.
        load: what is asked.
        turns: of each.
        turn_seconds: of each turn.

    Raises:
        click.ClickException: if a request ends in another way than the first.
    """
    flags = ("--num-threads", "1", "--provider", "cpu", "--log-level", "info", *load.flags)
    with running_replica(model, flags, log=subprocess.DEVNULL) as replica:
        async with contextlib.AsyncExitStack() as stack:
            channel = await stack.enter_async_context(_channel(replica.target))
            if load is REFUSED:
                await stack.enter_async_context(_full_queue(replica, channel))
            ours = Asked(replica.pid, channel, has_engine=True)
            answer = await ours.ask(load)
            ours.stop()
            server = await stack.enter_async_context(running_bare_server(answer))
            channel = await stack.enter_async_context(_channel(server.target))
            bare = Asked(server.pid, channel, has_engine=False)
            costs = [
                (
                    await ours.cost(load, turn_seconds, answer.code),
                    await bare.cost(load, turn_seconds, answer.code),
                )
                for _ in range(turns)
            ]
    return Cost(answer, *zip(*costs, strict=True))


def _channel(target: str) -> grpc.aio.Channel:
    # Without gRPC's own retries, which would ask again after a refusal.
    return grpc.aio.insecure_channel(target, options=[("grpc.enable_retries", 0)])


@contextlib.asynccontextmanager
async def _full_queue(replica: Replica, channel: grpc.aio.Channel) -> AsyncIterator[None]:
    stub = DiffusionServiceStub(channel)
    listed = await stub.ListModels(pb.ListModelsRequest())
    steps = listed.models[0].num_train_timesteps
    message = pb.GenerateRequest(label=1, count=_HELD_IMAGES, seed=1, num_steps=steps)
    call = stub.Generate(message, timeout=_HELD_SECONDS)
    try:
        await asyncio.to_thread(_wait_for_work, replica)
        yield
    finally:
        call.cancel()


def _wait_for_work(replica: Replica) -> None:
    while not replica.metric("diffusion_lanes_in_use"):
        time.sleep(0.05)


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(path_type=Path), default="models/mnist")
@click.option("--turns", type=click.IntRange(1), default=20)
@click.option("--turn-seconds", type=click.FloatRange(0.1), default=1.0)
def main(*, model: Path, turns: int, turn_seconds: float) -> None:
    """Prints what a request costs at the edge, in CPU time."""
    for load in (ACCEPTED, REFUSED):
        cost = asyncio.run(measure(model, load, turns=turns, turn_seconds=turn_seconds))
        click.echo(cost.summary(load.name))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.edge_cost")
