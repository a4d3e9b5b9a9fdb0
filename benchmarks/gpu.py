"""The engine on a GPU, proved and measured: `make bench-gpu`.

Proved: a GPU that cannot be had ends with the reason, every node is on CUDA, the device's steps are
NumPy's, and the images are those of the CPU. Measured: engine steps against bare replays of the
CUDA graph at every bucket, images per second against diffusers with torch.compile in bf16, and the
time for 10,000 images, and for one, at the bundle's defaults.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks import results
from benchmarks.gpu_steps import bucket_steps
from benchmarks.results import Spread
from benchmarks.served import QUEUED_IMAGES, Served
from serving.bundle import load_bundle
from serving.engine_model import EngineModel
from serving.network import OnnxNetwork, embedding_table, make_network
from serving.onnx_session import ProviderError
from serving.request import GenerateSpec
from serving.self_test import run_self_test
from serving.step_networks import StepNetworks

_PEER_STEPS = 10  # of every image in the comparison with the peer, as at saturation on the CPU
_COMPARED = 50  # images drawn on both providers


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


def measure_model(
    model: Path, max_lanes: int, images: int, turns: int, turn_seconds: float
) -> dict[str, Any]:
    """Proves and measures one bundle on the device.

    Raises:
        click.ClickException: if the device cannot be had.
    """
    bundle = load_bundle(model)
    try:
        network = make_network(bundle, "cuda", max_lanes=max_lanes)
    except ProviderError as error:
        raise click.ClickException(str(error)) from None
    assert isinstance(network, StepNetworks)  # with every node on CUDA, or it would not be here
    drawn = EngineModel.from_manifest(bundle.manifest, embedding_table(bundle))
    report = run_self_test(drawn, network, max_lanes=max_lanes, batch_sizes=network.buckets)
    click.echo(f"{bundle.manifest.name}: {report.summary()}")
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
    on_cpu = Served(drawn, OnnxNetwork(bundle), _COMPARED, QUEUED_IMAGES)
    of_cpu, _ = on_cpu.draw(few)
    on_cpu.close()
    served = Served(drawn, network, max_lanes, QUEUED_IMAGES)
    of_device, _ = served.draw(few)
    many, plain = requests(images, *default), requests(images, "ddpm", _PEER_STEPS, 1.0)
    one = [dataclasses.replace(few[0], count=1)]
    served.draw(many)  # warms up
    default_seconds, plain_seconds, one_seconds = (
        [served.draw(asked)[1] for _ in range(turns)] for asked in (many, plain, one)
    )
    served.close()
    return {
        "name": bundle.manifest.name,
        "self_test": report.summary(),
        "step_difference": report.step_difference,
        "bit_equal_in_crowds": report.bit_equal,
        "parity": parity(of_cpu, of_device),
        "images": images - images % labels,
        "default": {"sampler": default[0], "num_steps": default[1], "guidance_scale": default[2]},
        "default_seconds": asdict(Spread.of(default_seconds)),
        "one_seconds": asdict(Spread.of(one_seconds)),
        "plain_seconds": asdict(Spread.of(plain_seconds)),
        "buckets": bucket_steps(drawn, network, turns, turn_seconds),
    }


@click.command()
@click.option(
    "--model", "models", type=click.Path(path_type=Path), multiple=True, show_default=True,
    default=("models/mnist", "models/mnist-fp16"), help="Repeatable; peers run the first.",
)  # fmt: skip
@click.option(
    "--peer-python", type=click.Path(path_type=Path), help="Of the environment of the peers."
)
@click.option(
    "--peer-rows", type=click.IntRange(1), multiple=True, default=(512, 1024), show_default=True,
    help="Of a batch of diffusers; each is compiled, which takes minutes.",
)  # fmt: skip
@click.option("--max-lanes", type=click.IntRange(2), default=1024, show_default=True)
@click.option("--images", type=click.IntRange(10, QUEUED_IMAGES), default=10_000, show_default=True)
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True)
@click.option("--turn-seconds", type=float, default=0.15, show_default=True)
@click.option("--quick", is_flag=True, help="Seconds, to see that it works.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path))
def main(
    *,
    models: tuple[Path, ...],
    peer_python: Path | None,
    peer_rows: tuple[int, ...],
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
        peer_rows = (64, 512)
    measured = [measure_model(model, max_lanes, images, turns, turn_seconds) for model in models]
    data = {
        "device": gpu_name(),
        "refusal": refusal_without_a_device(),
        "models": measured,
        "plain_steps": _PEER_STEPS,
        "peer": None if peer_python is None else of_peer(peer_python, models[0], peer_rows, images),
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
