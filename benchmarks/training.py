"""Train steps per second, beside a plain loop and the loop of diffusers' training example.

    python -m benchmarks.training

Same network, batch size and images; the loops take turns. Run it with the peers' environment
(`make bench-training`); without diffusers in it, its loop is left out.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks import results
from benchmarks.equal_loss import Run, courses, equal_loss
from benchmarks.results import Spread
from benchmarks.roof import (
    CHANNELS,
    IMAGES,
    SIDE,
    SIZE,
    candidates,
    convolution_flop,
    fastest_seconds,
    matmul_flop,
)
from benchmarks.training_loops import (
    DiffusersLoop,
    OurLoop,
    OurProcesses,
    PlainLoop,
    TrainingLoop,
)
from serving.cpu_count import usable_cpus
from training.config import PRESETS, TrainConfig
from training.cost import CALLS_PER_TRAINED_IMAGE, forward_flop
from training.datasets import Dataset, load_dataset
from training.device import has_bf16
from training.model import DiffusionModel
from training.objective import draw
from training.schedule import make_schedule

SAMPLE = Path("tests/data/mnist-sample")
PLAIN = "plain fp32 loop"
DIFFUSERS_BF16 = "diffusers' example, bf16"
_TEST_SEED = 12345

RUN_SHARES = (0.5, 0.75, 1.0)
"""Of the plain loop's train steps: how long ours are that are to reach its error. Each is a whole
run, whose learning rate rises and falls within it, as whoever trains says how long that shall be.
"""


def make_loops(
    config: TrainConfig, dataset: Dataset, *, compiled: bool
) -> tuple[dict[str, TrainingLoop], dict[str, str]]:
    """(the loops by name, why some are missing)."""
    makers: dict[str, Callable[[], TrainingLoop]] = {
        "ours": lambda: OurLoop(config, dataset),
        PLAIN: lambda: PlainLoop(config, dataset),
        "diffusers' example, fp32": lambda: DiffusersLoop(config, dataset, "no"),
    }
    missing: dict[str, str] = {}
    if has_bf16(torch.device("cpu")):
        makers[DIFFUSERS_BF16] = lambda: DiffusersLoop(config, dataset, "bf16")
    else:
        missing[DIFFUSERS_BF16] = "this CPU has no instructions for bfloat16"
    if compiled:
        makers["ours, --compile"] = lambda: OurLoop(
            dataclasses.replace(config, compile=True), dataset
        )
    if (cpus := usable_cpus()) > 1:
        makers[f"ours, {cpus} processes"] = lambda: OurProcesses(
            config.preset, config.batch_size, SAMPLE, cpus
        )
    loops: dict[str, TrainingLoop] = {}
    for name, make in makers.items():
        try:
            loops[name] = make()
        except ImportError as error:
            missing[name] = f"not installed: {error.name}"
    return loops, missing


def measure(
    config: TrainConfig, dataset: Dataset, *, rounds: int, steps: int, compiled: bool
) -> dict[str, Any]:
    """Lets the loops take turns.

    Args:
        config: of the network and of our loop.
        dataset: what is trained on.
        rounds: turns of each loop.
        steps: train steps of each turn.
        compiled: whether to measure our loop with --compile too.
    """
    torch.set_num_threads(usable_cpus())
    loops, missing = make_loops(config, dataset, compiled=compiled)
    roofs = {"fp32": candidates(usable_cpus())}
    if has_bf16(torch.device("cpu")):
        roofs["bf16"] = bf16_candidates()
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    peaks: dict[str, list[float]] = {precision: [] for precision in roofs}
    for name, loop in loops.items():
        click.echo(f"warming up {name}")
        loop.run(1)
    for turn in range(rounds):
        click.echo(f"round {turn + 1} of {rounds}")
        for precision, calls in roofs.items():
            peaks[precision].append(
                max(flop / fastest_seconds(call, 0.2) for flop, call in calls.values())
            )
        for name, loop in loops.items():
            begin = time.perf_counter()
            loop.run(steps)
            seconds[name].append((time.perf_counter() - begin) / steps)
    errors = {
        name: eps_error_on_test_images(loop.weights(), config, dataset)
        for name, loop in loops.items()
    }
    for loop in loops.values():
        loop.close()
    flop = CALLS_PER_TRAINED_IMAGE * forward_flop(config.model) * config.batch_size
    return {
        "batch_size": config.batch_size,
        "train_steps": 1 + rounds * steps,
        "peaks": {name: Spread.of(values) for name, values in peaks.items()},
        "missing": missing,
        "loops": {
            name: {
                "images_per_second": Spread.of(config.batch_size / s for s in seconds[name]),
                "to_plain": Spread.of(
                    a / b for a, b in zip(seconds[PLAIN], seconds[name], strict=True)
                ),
                **{
                    f"share_of_{precision}_peak": Spread.of(
                        flop / s / peak
                        for s, peak in zip(seconds[name], peaks[precision], strict=True)
                    )
                    for precision in peaks
                },
                "test_eps_mse": errors[name],
            }
            for name in loops
        },
    }


def measure_equal_loss(
    config: TrainConfig, dataset: Dataset, *, train_steps: int, every: int
) -> dict[str, Any]:
    """How much sooner a run of ours is where the plain loop is within so many train steps."""
    images = len(dataset.train.images)
    runs = {PLAIN: Run(PlainLoop(config, dataset), train_steps)}
    for share in RUN_SHARES:
        steps = max(1, round(share * train_steps))
        run = dataclasses.replace(config, epochs=steps * config.batch_size / images)
        runs[f"ours, {steps} train steps"] = Run(OurLoop(run, dataset), steps)
    found = courses(runs, lambda weights: eps_error_on_test_images(weights, config, dataset), every)
    ours = {name: course for name, course in found.items() if name != PLAIN}
    compared = equal_loss(ours, found[PLAIN])
    return {
        "train_images": images,
        "plain": compared.of_other,
        "run": compared.name,
        "ours": compared.of_run,
        "times_as_fast": compared.times_as_fast,
        "at_the_end": {name: course[-1] for name, course in found.items()},
        "courses": found,
    }


@torch.no_grad()
def eps_error_on_test_images(
    weights: dict[str, Tensor], config: TrainConfig, dataset: Dataset
) -> float:
    """Mean squared error on eps of test images, the same with the same noise for every loop."""
    plain = DiffusionModel(config.model, make_schedule(config)).eval()
    plain.load_state_dict(weights)
    schedule = make_schedule(config)
    images = torch.tensor(dataset.test.images[: config.batch_size])[:, None]
    x_0 = images.float().div_(127.5).sub_(1.0)
    label = torch.tensor(dataset.test.labels[: len(x_0)]).long()
    errors = []
    for i in range(4):
        random = draw(dataclasses.replace(config, seed=_TEST_SEED), i, torch.device("cpu"))
        t, eps = random.t[: len(x_0)], random.eps[: len(x_0)]
        alpha = torch.tensor(schedule.alpha, dtype=torch.float32)[t, None, None, None]
        sigma = torch.tensor(schedule.sigma, dtype=torch.float32)[t, None, None, None]
        errors.append((plain(alpha * x_0 + sigma * eps, t, label) - eps).square().mean())
    return float(torch.stack(errors).mean())


def bf16_candidates() -> dict[str, tuple[int, Callable[[], object]]]:
    """(FLOP of one call, the call) of PyTorch's matrix product and convolution in bfloat16."""
    a = torch.randn(SIZE, SIZE).bfloat16()
    convolution = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False).bfloat16()
    convolution.to(memory_format=torch.channels_last)
    image = torch.randn(IMAGES, CHANNELS, SIDE, SIDE).bfloat16()
    image = image.to(memory_format=torch.channels_last)

    def matmul() -> object:
        with torch.inference_mode():
            return a @ a

    def convolve() -> object:
        with torch.inference_mode():
            return convolution(image)

    return {
        "matrix product": (matmul_flop(), matmul),
        "convolution": (convolution_flop(), convolve),
    }


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=4)
@click.option("--steps", type=click.IntRange(1), default=6, help="Train steps of a turn.")
@click.option("--equal-loss-steps", type=click.IntRange(1), default=300,
              help="Train steps of the plain loop, whose best error is to be met.")  # fmt: skip
@click.option("--equal-loss-every", type=click.IntRange(1), default=10,
              help="Train steps between two looks at the error.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path),
              help="With the IDX files of MNIST. [default: 500 of them in tests/data]")  # fmt: skip
@click.option("--compile/--no-compile", "compiled", default=True)
@click.option("--quick", is_flag=True, help="The tiny network, a step each.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path))
def main(
    *,
    rounds: int,
    steps: int,
    equal_loss_steps: int,
    equal_loss_every: int,
    data_dir: Path | None,
    compiled: bool,
    quick: bool,
    output: Path | None,
) -> None:
    """Measures the training loops; about six minutes."""
    before = results.machine()
    preset = PRESETS["tiny" if quick else "base"]
    config = dataclasses.replace(
        preset, data_dir=data_dir or SAMPLE, allow_other_data=True, device="cpu",
        batch_size=8 if quick else preset.batch_size,
    )  # fmt: skip
    dataset = load_dataset(config.dataset, config.data_dir, verify=data_dir is not None)
    data = measure(
        config,
        dataset,
        rounds=1 if quick else rounds,
        steps=1 if quick else steps,
        compiled=compiled and not quick,
    )
    click.echo("time to equal loss")
    data["equal_loss"] = measure_equal_loss(
        config,
        dataset,
        train_steps=2 if quick else equal_loss_steps,
        every=1 if quick else equal_loss_every,
    )
    results.save("training", data, before, quick=quick, output=output)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.training")
