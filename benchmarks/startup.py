"""How long a server takes until it serves, the memory that it holds, and the room on disk.

    python -m benchmarks.startup

Beside the peers, started in turns, each in its own environment.
"""

import asyncio
import dataclasses
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks import results
from benchmarks.peers.drawing import Drawing
from benchmarks.peers.processes import (
    OURS,
    OURS_IN_8_BITS,
    PEERS,
    REPOSITORY,
    Peer,
    PeerUnavailable,
    end_like_ctrl_c,
    started,
)
from benchmarks.results import Spread

IMAGE = "simple-diffusion:serving"
"""As docker-compose.yml calls it."""

_UNTUNED = ("--max-rows", "64")  # trying out batch sizes is no part of a start

PACKAGES = {
    OURS: ("simple-diffusion[serving]",),
    OURS_IN_8_BITS: ("simple-diffusion[serving]",),
    "ONNX Runtime loop": ("onnxruntime",),
    "diffusers, eager fp32": ("diffusers", "torch"),
    "Triton": ("nvidia-pytriton", "onnxruntime"),
    "LitServe": ("litserve", "onnxruntime"),
}
"""Which peers are started, and what has to be installed for each."""

_WARM = Drawing(label=0, count=16, num_steps=10, seed=0)


async def start_once(peer: Peer) -> dict[str, float]:
    """Starts a peer, lets it draw once, and stops it.

    Raises:
        PeerUnavailable: it does not start.
    """
    if peer.protocol != "grpc":
        peer = dataclasses.replace(peer, arguments=(*peer.arguments, *_UNTUNED))
    async with started(peer) as running:
        idle = running.memory()
        await running.target.draw(_WARM)
        warm = running.memory()
        return {
            "ready_seconds": running.ready_seconds,
            "idle_resident_bytes": idle.resident_bytes,
            "resident_bytes": warm.resident_bytes,
            "proportional_bytes": warm.proportional_bytes,
            "processes": warm.processes,
        }


def measure(peers: list[Peer], rounds: int) -> dict[str, Any]:
    """Starts every peer in turns, once to have its modules compiled and `rounds` times that count.

    Args:
        peers: which.
        rounds: at least 1.
    """
    starts: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    unavailable: dict[str, str] = {}
    for _ in range(1 + rounds):
        for peer in peers:
            if peer.name in unavailable:
                continue
            click.echo(f"starting {peer.name}")
            try:
                starts[peer.name].append(asyncio.run(start_once(peer)))
            except PeerUnavailable as reason:
                unavailable[peer.name] = str(reason)
    return {
        "unavailable": unavailable,
        "peers": {
            peer.name: {
                **{
                    name: Spread.of(each[name] for each in starts[peer.name][1:])
                    for name in starts[peer.name][0]
                },
                "installed_bytes": installed_bytes(peer),
            }
            for peer in peers
            if starts[peer.name][1:]
        },
        "model_bytes": sum(file.stat().st_size for file in (REPOSITORY / "models/mnist").iterdir()),
        "wheel_bytes": wheel_bytes(),
        "image_bytes": image_bytes(),
    }


def installed_bytes(peer: Peer) -> int | None:
    """What its packages take in its environment; None if they cannot be told."""
    command = [str(peer.python), "-m", "benchmarks.installed", *PACKAGES[peer.name]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def wheel_bytes() -> int | None:
    """Size of this project's wheel; None if it cannot be built here."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
                   "--no-build-isolation", "--wheel-dir", directory, "."]  # fmt: skip
        done = subprocess.run(command, capture_output=True, cwd=REPOSITORY, check=False)
        wheels = list(Path(directory).glob("*.whl"))
        return wheels[0].stat().st_size if done.returncode == 0 and wheels else None


def image_bytes() -> int | None:
    """Size of the server's container image; None where there is no Docker, or it was not built."""
    docker = shutil.which("docker")
    if docker is None:
        return None
    command = [docker, "image", "inspect", "--format", "{{.Size}}", IMAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=3)
@click.option("--quick", is_flag=True, help="Ours alone, once.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path))
def main(*, rounds: int, quick: bool, output: Path | None) -> None:
    """Starts our server and its peers in turns; about two minutes."""
    end_like_ctrl_c()
    before = results.machine()
    peers = [peer for peer in PEERS if peer.name in PACKAGES and not (quick and peer.name != OURS)]
    data = measure(peers, 1 if quick else rounds)
    results.save("startup", data, before, quick=quick, output=output)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.startup")
