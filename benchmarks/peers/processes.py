"""Starts the peers, each as a process of its own in its own environment, and ours beside them."""

import asyncio
import contextlib
import functools
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import httpx

from benchmarks import results
from benchmarks.load.targets import (
    GrpcTarget,
    LitServeTarget,
    ProcessTarget,
    Target,
    TritonTarget,
)
from benchmarks.peers.worker import READY
from benchmarks.process_tree import Memory, cpu_seconds_of_tree, memory_of_tree, signal_tree

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 600.0  # compiled peers compile for several shapes
IDLE_SECONDS = 120.0
_IDLE_POLL_SECONDS = 0.5
_IDLE_CPU_SHARE = 0.2  # of one core, beyond what it takes before it was asked for anything
_IDLE_POLLS = 4
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.01
_LOG_TAIL = 2000  # characters


class PeerUnavailable(Exception):
    """A peer that does not run here; the message is one line."""


@dataclass(frozen=True, slots=True)
class Peer:
    """How one peer is run.

    Attributes:
        name: in the tables.
        environment: directory of its virtual environment; None for this process' own.
        arguments: after `python`; {port} and {ready_file} are filled in.
        protocol: "grpc", "litserve", "triton", or "process" for a loop without a server.
        what: one line for the tables.
        in_bfloat16: whether it computes in bfloat16.
    """

    name: str
    environment: str | None
    arguments: tuple[str, ...]
    protocol: str
    what: str
    in_bfloat16: bool = False

    @property
    def python(self) -> Path:
        """Its interpreter.

        Raises:
            PeerUnavailable: its environment was not made.
        """
        if self.environment is None:
            return Path(sys.executable)
        python = REPOSITORY / self.environment / "bin" / "python"
        if not python.exists():
            raise PeerUnavailable(f"{self.environment} is not there: make bench-peers")
        return python

    def require(self, cpu_features: Collection[str]) -> None:
        """Checks what the CPU can do.

        Raises:
            PeerUnavailable: it would emulate bfloat16, at an eighth of the speed of float32: no
                choice of anybody's, and the whole comparison would wait for it.
        """
        if self.in_bfloat16 and not set(results.BFLOAT16_FEATURES) & set(cpu_features):
            raise PeerUnavailable("this CPU has no instructions for bfloat16")


def loop(name: str, environment: str | None, loop_name: str, what: str, *max_rows: int) -> Peer:
    """A loop without a server, in batches of what it finds fastest, or fastest of `max_rows`."""
    arguments = ["-m", "benchmarks.peers.worker", "--loop", loop_name]
    if max_rows:
        arguments += ["--max-rows", *map(str, max_rows)]
    in_bfloat16 = loop_name.endswith("bf16")
    return Peer(name, environment, tuple(arguments), "process", what, in_bfloat16)


def server(name: str, environment: str | None, what: str, *flags: str) -> Peer:
    """Our server, which has the machine for itself, as the peers have."""
    arguments = (
        "-m", "serving", "--port", "{port}", "--http-port", "0", "--ready-file", "{ready_file}",
        "--drain-grace-seconds", "0", "--log-level", "warning", *flags,
    )  # fmt: skip
    return Peer(name, environment, arguments, "grpc", what)


OURS = "simple-diffusion"
OURS_IN_8_BITS = "simple-diffusion, 8 bits"
OWN = (OURS, OURS_IN_8_BITS)
PEERS = (
    server(
        OURS,
        ".venv-serving",
        "this project's server over gRPC, as it starts without flags",
    ),
    server(
        OURS_IN_8_BITS,
        ".venv-serving",
        "the same with models/mnist-int8",
        "--model",
        "models/mnist-int8",
    ),
    loop("ONNX Runtime loop", None, "onnx", "unet.onnx in a NumPy loop, 2 threads"),
    loop("diffusers, eager fp32", ".venv-peers", "eager-fp32", "DiffusionPipeline, channels_last"),
    # Compiled for each number of rows, so for few of them.
    loop("diffusers, compile fp32", ".venv-peers", "compile-fp32", "with torch.compile", 16, 64),
    loop("diffusers, eager bf16", ".venv-peers", "eager-bf16", "autocast to bfloat16"),
    loop("diffusers, compile bf16", ".venv-peers", "compile-bf16", "both of them", 16, 64),
    Peer(
        "Triton",
        ".venv-triton",
        ("-m", "benchmarks.peers.triton_server", "--port", "{port}"),
        "triton",
        "nvidia-pytriton, dynamic batcher around the ONNX Runtime loop, 2 instances of 1 thread",
    ),
    Peer(
        "LitServe",
        ".venv-peers",
        ("-m", "benchmarks.peers.litserve_server", "--port", "{port}"),
        "litserve",
        "batches of up to 64 requests around the ONNX Runtime loop, 2 workers of 1 thread",
    ),
)  # fmt: skip


def end_like_ctrl_c() -> None:
    """Has SIGTERM end this process as Ctrl-C does: with everything that it has started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that is ready.

    Attributes:
        peer: which one.
        target: where requests go.
        connect: gives another one.
        pid: of its first process.
        ready_seconds: from the start of the process until it was ready.
        idle_cpu_share: of one core, that it takes while nobody asks for anything: some poll.
    """

    peer: Peer
    target: Target
    connect: Callable[[], Target]
    pid: int
    ready_seconds: float
    idle_cpu_share: float = 0.0

    def memory(self) -> Memory:
        """Of all its processes, now."""
        return memory_of_tree(self.pid)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Self]:
        """Lets it run; all others are stopped, since idle servers take processor time too.

        On new connections: who was stopped takes those that it had for dead.
        """
        signal_tree(self.pid, signal.SIGCONT)
        try:
            async with self.connect() as target:
                yield replace(self, target=target)
        finally:
            self.stop()

    def stop(self) -> None:
        """Until its turn."""
        signal_tree(self.pid, signal.SIGSTOP)

    async def wait_idle(self) -> None:
        """Waits until it computes nothing: some go on with what nobody waits for any more.

        Raises:
            PeerUnavailable: it still does after a long time.
        """
        end_seconds = time.perf_counter() + IDLE_SECONDS
        while time.perf_counter() < end_seconds:
            if await _cpu_share(self.pid) < self.idle_cpu_share + _IDLE_CPU_SHARE:
                return
        raise PeerUnavailable(f"{self.peer.name} was still busy {IDLE_SECONDS:g} s after its load")


@contextlib.asynccontextmanager
async def started(peer: Peer) -> AsyncIterator[Running]:
    """Starts a peer, waits until it is ready, and stops it with all its processes at the end.

    Raises:
        PeerUnavailable: it does not start.
    """
    with tempfile.TemporaryDirectory() as directory:
        ready_file, log_file = Path(directory) / "ready", Path(directory) / "log"
        port = _free_port()
        arguments = [each.format(port=port, ready_file=ready_file) for each in peer.arguments]
        python = peer.python
        piped = asyncio.subprocess.PIPE if peer.protocol == "process" else None
        begin = time.perf_counter()
        with log_file.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                python, *arguments, stdin=piped, stdout=piped or log, stderr=log,
                cwd=REPOSITORY, env=_variables(), start_new_session=True, limit=2**24,
            )  # fmt: skip
        try:
            try:
                async with asyncio.timeout(START_SECONDS):
                    await _ready(peer, process, port, ready_file)
            except (TimeoutError, EOFError):
                said = " ".join(log_file.read_text(errors="replace")[-_LOG_TAIL:].split())
                raise PeerUnavailable(f"{peer.name} did not start: {said[-300:]}") from None
            seconds = time.perf_counter() - begin
            connect = _connector(peer, process, port)
            # The least of some, for there may be something left to do yet.
            idle = min([await _cpu_share(process.pid) for _ in range(_IDLE_POLLS)])
            async with connect() as target:
                yield Running(peer, target, connect, process.pid, seconds, idle)
        finally:
            signal_tree(process.pid, signal.SIGCONT)
            await _stop(process)


async def _cpu_share(pid: int) -> float:
    """Cores that a process and its children are busy with, for a moment."""
    before = cpu_seconds_of_tree(pid)
    await asyncio.sleep(_IDLE_POLL_SECONDS)
    return (cpu_seconds_of_tree(pid) - before) / _IDLE_POLL_SECONDS


def _connector(peer: Peer, process: asyncio.subprocess.Process, port: int) -> Callable[[], Target]:
    if peer.protocol == "process":
        target = ProcessTarget(process)
        return lambda: target
    speaks: dict[str, Callable[[str], Target]] = {
        "grpc": GrpcTarget,
        "litserve": LitServeTarget,
        "triton": TritonTarget,
    }
    return functools.partial(speaks[peer.protocol], f"127.0.0.1:{port}")


async def _ready(
    peer: Peer, process: asyncio.subprocess.Process, port: int, ready_file: Path
) -> None:
    """Waits until the peer answers; raises EOFError if it ends before."""
    if peer.protocol == "process":
        assert process.stdout is not None
        if (await process.stdout.readline()).strip() != READY.encode():
            raise EOFError
        return
    pages = {"litserve": "health", "triton": "v2/models/digits/ready"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        while process.returncode is None:
            if peer.protocol == "grpc":
                if os.path.exists(ready_file):  # noqa: ASYNC240, PTH110 - at once
                    return
            else:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(pages[peer.protocol])).status_code == httpx.codes.OK:
                        return
            await asyncio.sleep(_POLL_SECONDS)
    raise EOFError


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to all processes of its session, and SIGKILL to those that are left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()


def _variables() -> dict[str, str]:
    """Ours, without settings for servers, and with compiled modules kept as they usually are."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SIMPLE_DIFFUSION_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "protos")])
    return {**kept, "PYTHONPATH": paths, "ORT_DISABLE_TELEMETRY": "1"}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
