"""What one replica gives, and what a million images a day take: the table of docs/capacity.md.

    PYTHONPATH=. python benchmarks/capacity.py --page docs/capacity.md

Starts a server, with the flags that stand behind `--`, and asks it over gRPC: for one image alone,
then for so many that every lane is in use from the first engine step to the last. Client and server
share the machine.
"""

import asyncio
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import onnxruntime
from prometheus_client.parser import text_string_to_metric_families

from diffusion.samplers import network_rows
from serving.client import AsyncClient

IMAGES_PER_DAY = 1_000_000
SECONDS_PER_DAY = 86_400
# The busiest hour of a day, to the average of the day.
PEAK = 3.0
# What a replica is asked for at most, to what it gives: beyond, waiting grows without end.
UTILISATION = 0.7
LEAST_REPLICAS = 2

_READY_SECONDS = 120.0
_CALL_SECONDS = 1800.0
_ALONE_TIMES = 5
_BEGIN = "<!-- measured by benchmarks/capacity.py --page -->"
_END = "<!-- end of what was measured -->"


@dataclass(frozen=True, slots=True)
class Setting:
    """How images are drawn."""

    sampler: str
    num_steps: int
    guidance_scale: float

    @property
    def rows_per_image(self) -> int:
        """Network rows."""
        return network_rows(self.sampler, self.num_steps, self.guidance_scale)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica gives at a setting.

    Attributes:
        images_per_second: with every lane in use.
        alone_seconds: of a request for one image on an idle replica, median.
    """

    setting: Setting
    images_per_second: float
    alone_seconds: float


@dataclass(frozen=True, slots=True)
class Replica:
    """A server that was started."""

    target: str
    http_port: int
    pid: int

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        url = f"http://127.0.0.1:{self.http_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@contextlib.contextmanager
def running_replica(
    model: Path, flags: tuple[str, ...], log: int | None = None
) -> Iterator[Replica]:
    """Starts a server on free ports and kills it at the end.

    Args:
        model: the bundle.
        flags: of the server, beside those for its ports.
        log: a file descriptor for the server's log, or subprocess.DEVNULL; None: where ours goes.

    Raises:
        click.ClickException: if it does not become ready.
    """
    with tempfile.TemporaryDirectory() as directory:
        ready_file = Path(directory) / "ready.json"
        command = [sys.executable, "-m", "serving", "--model", str(model), "--port", "0"]
        command += ["--http-port", "0", "--ready-file", str(ready_file), "--log-level", "warning"]
        process = subprocess.Popen([*command, *flags], stderr=log)
        try:
            end_seconds = time.monotonic() + _READY_SECONDS
            while not ready_file.exists():
                if process.poll() is not None or time.monotonic() > end_seconds:
                    raise click.ClickException("the server did not start")
                time.sleep(0.05)
            ready = json.loads(ready_file.read_text("utf-8"))
            yield Replica(f"127.0.0.1:{ready['grpc_port']}", ready["http_port"], process.pid)
        finally:
            process.kill()
            process.wait()


async def measure(replica: Replica, setting: Setting, labels: int, seconds: float) -> Capacity:
    """Asks for images of so many labels for about so long: at least two whole batches."""
    lanes = int(await asyncio.to_thread(replica.metric, "diffusion_lanes_capacity"))
    limit = int(await asyncio.to_thread(replica.metric, "diffusion_images_waiting_limit"))
    async with AsyncClient(replica.target, timeout_seconds=_CALL_SECONDS) as client:

        async def draw(count: int, seed: int) -> float:
            begin = time.perf_counter()
            await client.generate(
                seed % labels,
                count,
                seed=seed,
                sampler=setting.sampler,
                num_steps=setting.num_steps,
                guidance_scale=setting.guidance_scale,
            )
            return time.perf_counter() - begin

        await draw(1, 0)
        alone = [await draw(1, seed) for seed in range(_ALONE_TIMES)]
        batch_seconds = await draw(lanes, 0)
        batches = min(limit // lanes, max(2, math.ceil(seconds / batch_seconds)))
        begin = time.perf_counter()
        await asyncio.gather(*(draw(lanes, seed) for seed in range(batches)))
        passed_seconds = time.perf_counter() - begin
    return Capacity(setting, lanes * batches / passed_seconds, statistics.median(alone))


def replicas_needed(images_per_second: float) -> int:
    """How many replicas the busiest hour of a day with a million images takes; at least 2."""
    busiest = PEAK * IMAGES_PER_DAY / SECONDS_PER_DAY
    return max(LEAST_REPLICAS, math.ceil(busiest / (UTILISATION * images_per_second)))


def replica_hours(images_per_second: float) -> float:
    """Hours of one replica that a million images take, at the usual utilisation."""
    return IMAGES_PER_DAY / (UTILISATION * images_per_second) / 3600


def table(measured: list[Capacity], hourly_price: float) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = [
        (
            "| sampler, num_steps, guidance | network rows per image | images per second"
            " | one image alone | replica-hours per million | price of that | replicas needed |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for each in measured:
        setting, hours = each.setting, replica_hours(each.images_per_second)
        lines.append(
            f"| {setting.sampler}, {setting.num_steps}, {setting.guidance_scale:g}"
            f" | {setting.rows_per_image} | {each.images_per_second:.3g}"
            f" | {1000 * each.alone_seconds:.3g} ms | {hours:.3g} | {hours * hourly_price:.2f}"
            f" | {replicas_needed(each.images_per_second)} |"
        )
    return lines


def arithmetic(default: Capacity, hourly_price: float) -> list[str]:
    """Returns the steps from the measured default to replicas and to a price, in Markdown."""
    average, gives = IMAGES_PER_DAY / SECONDS_PER_DAY, default.images_per_second
    replicas, hours = replicas_needed(gives), replica_hours(gives)
    fixed_hours = 24 * replicas
    least_hours = 24 * LEAST_REPLICAS
    # Scaled by load: what the images take, but never less than the least number for a whole day.
    scaled_hours = max(hours, least_hours)
    busiest, asked = PEAK * average, UTILISATION * gives
    return [
        (
            f"- {IMAGES_PER_DAY:,} / {SECONDS_PER_DAY:,} s = {average:.1f} images per second on"
            f" average; {PEAK:g} times that in the busiest hour: {busiest:.1f}."
        ),
        (
            f"- One replica gives {gives:.3g} with the default setting; asked for"
            f" {UTILISATION:.0%} of it, {asked:.3g}."
        ),
        (
            f"- {busiest:.1f} / {asked:.3g} = {busiest / asked:.2g}: {replicas} replicas"
            f" (at least {LEAST_REPLICAS}, so that one can go)."
        ),
        (
            f"- A fixed number: {replicas} x 24 h = {fixed_hours} replica-hours a day; at"
            f" {hourly_price:g} an hour, {fixed_hours * hourly_price:.2f}."
        ),
        (
            f"- The work itself is {hours:.3g} replica-hours; scaled by load, but never below"
            f" {LEAST_REPLICAS}, a day is about {scaled_hours:.3g}:"
            f" {scaled_hours * hourly_price:.2f}."
        ),
    ]


def conditions(replica: Replica, load: float, provider: str) -> str:
    """Returns the line that says where it was measured."""
    lanes = replica.metric("diffusion_lanes_capacity")
    return (
        f"Measured on {_cpu()}, {len(os.sched_getaffinity(0))} CPUs for server and client together,"
        f" provider {provider}, {lanes:.0f} lanes, ONNX Runtime {onnxruntime.__version__}; load"
        f" average before the start {load:.1f} (a machine that did nothing else would say 0)."
    )


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def replace_measured(page: str, lines: list[str]) -> str:
    """Returns the page with these lines between its two marks.

    Raises:
        ValueError: if a mark is missing.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page has no {_BEGIN} ... {_END}")
    return "\n".join([before + begin, "", *lines, "", end + after])


async def _measure_all(
    replica: Replica, num_steps: tuple[int, ...], seconds: float
) -> tuple[list[Capacity], str]:
    async with AsyncClient(replica.target) as client:
        model = (await client.models()).models[0]
    default = Setting(model.default_sampler, model.default_num_steps, model.default_guidance_scale)
    settings = [default, *(Setting("ddim", each, 1.0) for each in num_steps)]
    measured = []
    for setting in settings:
        measured.append(await measure(replica, setting, len(model.label_names), seconds))
        print(table(measured[-1:], 0.0)[-1], file=sys.stderr)
    return measured, model.name


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default="models/mnist", show_default=True)
@click.option(
    "--num-steps", type=click.IntRange(1), multiple=True, default=(5, 10, 20, 50, 100, 1000),
    show_default=True, help="Measured with ddim and without guidance, beside the default setting.",
)  # fmt: skip
@click.option("--seconds", type=float, default=15.0, show_default=True, help="Of each setting.")
@click.option("--hourly-price", type=float, default=0.08, show_default=True, help="Of one replica.")
@click.option(
    "--page", type=click.Path(path_type=Path), help="Write it into this page, between its marks."
)
@click.argument("flags", nargs=-1)
def main(
    *,
    model: Path,
    num_steps: tuple[int, ...],
    seconds: float,
    hourly_price: float,
    page: Path | None,
    flags: tuple[str, ...],
) -> None:
    """Prints how many images per second one replica gives, and what a million a day take.

    FLAGS go to the server: -- --provider cuda
    """
    load = os.getloadavg()[0]
    with running_replica(model, flags) as replica:
        measured, name = asyncio.run(_measure_all(replica, num_steps, seconds))
        where = conditions(replica, load, provider_of(replica, name))
    lines = [where, "", *table(measured, hourly_price), "", *arithmetic(measured[0], hourly_price)]
    print("\n".join(lines))
    if page is not None:
        page.write_text(replace_measured(page.read_text("utf-8"), lines), "utf-8")


def provider_of(replica: Replica, model: str) -> str:
    """Where the replica runs a model: cpu or cuda."""
    on_cpu = replica.metric("diffusion_model_info", model=model, provider="cpu")
    return "cpu" if on_cpu else "cuda"


if __name__ == "__main__":
    main()
