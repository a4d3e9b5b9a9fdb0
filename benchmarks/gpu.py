"""The engine on a GPU, proved and measured: `make bench-gpu`.

Proved: a GPU that cannot be had ends with the reason, every node is on CUDA, the device's steps are
NumPy's, and the images are those of the CPU. Measured: engine steps against bare replays of the
CUDA graph at every bucket, images per second against diffusers with torch.compile in bf16, and the
time for 10,000 images at the bundle's defaults.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks import results
from benchmarks.engine_overhead import Saturated
from benchmarks.pace import times_per_second
from benchmarks.results import Spread
from serving.bundle import load_bundle
from serving.engine import Engine
from serving.engine_model import EngineModel, Network
from serving.network import OnnxNetwork, embedding_table, make_network
from serving.onnx_session import ProviderError
from serving.request import GenerateSpec, NullSink, Outcome, Pixels
from serving.rounds import Rounds
from serving.self_test import run_self_test
from serving.step_network import StepNetwork

_PEER_STEPS = 10  # of every image in the comparison with the peer, as at saturation on the CPU
_COMPARED = 50  # images drawn on both providers


class Album(NullSink):
    """A sink that keeps the images."""

    def __init__(self) -> None:
        self.images: dict[int, Pixels] = {}
        self.outcome: Outcome | None = None

    def image(self, index: int, pixels: Pixels) -> None:
        """See Sink."""
        self.images[index] = pixels

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        """See Sink."""
        self.outcome = outcome


def draw(
    model: EngineModel, network: Network, specs: Sequence[GenerateSpec], max_lanes: int
) -> tuple[npt.NDArray[np.uint8], float]:
    """Every image of some requests, in order: uint8 [N, C, H, W], and the seconds that it took."""
    total = sum(spec.count for spec in specs)
    engine = Engine(model, network, max_lanes=max_lanes, max_queued_images=total)
    albums = [Album() for _ in specs]
    begin = time.perf_counter()
    for spec, album in zip(specs, albums, strict=True):
        engine.submit(spec, album)
    rounds = Rounds(engine.workers)
    while engine.has_work:
        rounds.step(engine)
    rounds.close()
    seconds = time.perf_counter() - begin
    for spec, album in zip(specs, albums, strict=True):
        if album.outcome is not Outcome.FINISHED:
            raise RuntimeError(f"the request for label {spec.label} ended as {album.outcome}")
    images = [album.images[i] for album in albums for i in sorted(album.images)]
    return np.stack(images), seconds


def bucket_steps(
    model: EngineModel, network: StepNetwork, turns: int, turn_seconds: float
) -> list[dict[str, Any]]:
    """Engine steps with all lanes in use against bare replays, at every number of lanes."""
    found = []
    for lanes in network.lane_counts:
        saturated = Saturated(model, network, lanes, "ddpm")
        saturated.step()
        network.replay(lanes)
        bare, steps = [], []
        for _ in range(turns):
            bare.append(1 / times_per_second(partial(network.replay, lanes), turn_seconds))
            steps.append(1 / times_per_second(saturated.step, turn_seconds))
        ratios = [step / replay for step, replay in zip(steps, bare, strict=True)]
        found.append(
            {
                "rows": lanes,
                "replay_seconds": statistics.median(bare),
                "step_seconds": statistics.median(steps),
                "ratio": asdict(Spread.of(ratios)),
            }
        )
    return found


def parity(of_cpu: npt.NDArray[np.uint8], of_device: npt.NDArray[np.uint8]) -> dict[str, float]:
    """How far images of two providers are apart."""
    difference = np.abs(of_cpu.astype(np.int16) - of_device.astype(np.int16))
    return {
        "images": len(of_cpu),
        "equal_pixels": float(np.mean(difference == 0)),
        "mean_difference": float(difference.mean()),
        "largest_difference": int(difference.max()),
    }


def refusal_without_a_device() -> str:
    """What a process says that asks for CUDA and sees no device.

    Raises:
        RuntimeError: if it was given one after all.
    """
    script = (
        "from serving.network import ProviderError, resolve_provider\n"
        "try: print('got', resolve_provider('cuda'))\n"
        "except ProviderError as error: print('refused:', error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not said.startswith("refused: "):
        raise RuntimeError(f"without a visible device, CUDA was not refused: {said}")
    return said.removeprefix("refused: ")


def of_peer(python: Path, model: Path, rows: Sequence[int], images: int) -> dict[str, Any]:
    """What benchmarks.peers.on_cuda measures in its own environment."""
    command = [
        str(python), "-m", "benchmarks.peers.on_cuda", "--model", str(model),
        "--images", str(images), "--num-steps", str(_PEER_STEPS),
        "--rows", *map(str, rows),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([".", "protos"])}
    last = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=environment
    ).stdout.splitlines()[-1]
    measured: dict[str, Any] = json.loads(last)
    return measured


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=Path("models/mnist"))
@click.option(
    "--peer-python", type=click.Path(path_type=Path), help="Of the environment of the peers."
)
@click.option("--max-lanes", type=click.IntRange(1), default=512, show_default=True)
@click.option("--images", type=click.IntRange(10), default=10_000, show_default=True)
@click.option("--turns", type=click.IntRange(1), default=7, show_default=True)
@click.option("--turn-seconds", type=float, default=0.3, show_default=True)
@click.option("--quick", is_flag=True, help="Seconds, to see that it works.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path))
def main(
    *,
    model: Path,
    peer_python: Path | None,
    max_lanes: int,
    images: int,
    turns: int,
    turn_seconds: float,
    quick: bool,
    output: Path | None,
) -> None:
    """Proves and measures the engine on the first GPU."""
    before = results.machine()
    if quick:
        images, turns, turn_seconds = 200, 1, 0.05
    bundle = load_bundle(model)
    try:
        network = make_network(bundle, "cuda", max_lanes=max_lanes)
    except ProviderError as error:
        raise click.ClickException(str(error)) from None
    assert isinstance(network, StepNetwork)  # with every node on CUDA, or it would not be here
    drawn = EngineModel.from_manifest(bundle.manifest, embedding_table(bundle))
    refusal = refusal_without_a_device()
    report = run_self_test(drawn, network, max_lanes=max_lanes, batch_sizes=network.buckets)
    click.echo(report.summary())

    defaults, labels = bundle.manifest.defaults, drawn.null_label

    def requests(count: int, sampler: str, num_steps: int, scale: float) -> list[GenerateSpec]:
        return [
            GenerateSpec(
                label=label, count=count // labels, first_index=0, seed=label, sampler=sampler,
                num_steps=num_steps, guidance_scale=scale,
            )
            for label in range(labels)
        ]  # fmt: skip

    default = defaults.sampler, defaults.num_steps, defaults.guidance_scale
    few = requests(_COMPARED, *default)
    of_cpu, _ = draw(drawn, OnnxNetwork(bundle), few, _COMPARED)
    of_device, _ = draw(drawn, network, few, min(_COMPARED, max_lanes))
    steps = bucket_steps(drawn, network, turns, turn_seconds)
    many = requests(images, *default)
    default_seconds = [draw(drawn, network, many, max_lanes)[1] for _ in range(turns)]
    plain = requests(images, "ddpm", _PEER_STEPS, 1.0)
    plain_seconds = [draw(drawn, network, plain, max_lanes)[1] for _ in range(turns)]
    peer = None
    if peer_python is not None:
        peer = of_peer(
            peer_python, model, [64, 512] if quick else [64, 128, 256, 512, 1024], images
        )
    data = {
        "device": gpu_name(),
        "refusal": refusal,
        "self_test": report.summary(),
        "step_difference": report.step_difference,
        "bit_equal_in_crowds": report.bit_equal,
        "parity": parity(of_cpu, of_device),
        "buckets": steps,
        "images": images - images % labels,
        "default": {"sampler": default[0], "num_steps": default[1], "guidance_scale": default[2]},
        "default_seconds": asdict(Spread.of(default_seconds)),
        "plain_steps": _PEER_STEPS,
        "plain_seconds": asdict(Spread.of(plain_seconds)),
        "peer": peer,
    }
    results.save("gpu", data, before, quick=quick, output=output)


def gpu_name() -> str:
    """What nvidia-smi calls the first GPU."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown GPU"
    return listed.splitlines()[0]


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.gpu")
