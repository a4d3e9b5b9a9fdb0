"""Open-loop load on a server: `python -m benchmarks.load --target HOST:PORT`.

Requests are sent at times that were drawn before, whatever became of those before them, and
latency counts from these times.
"""

import asyncio
import sys
from pathlib import Path

import click
import numpy as np

from benchmarks.load import arrivals, open_loop, summary
from benchmarks.load.arrivals import Kind
from benchmarks.load.plot import plot
from benchmarks.load.targets import TARGETS, Target
from benchmarks.peers.drawing import Drawing

_LABELS = 10


async def send_all(
    target: Target,
    at_seconds: arrivals.Seconds,
    kinds: list[Kind],
    seed: int,
    drain_seconds: float,
) -> list[open_loop.Record]:
    """Runs a schedule against a target; request i asks for label i mod 10 and seed `seed` + i."""

    async def send(i: int, kind: Kind) -> None:
        await target.draw(Drawing(i % _LABELS, kind.count, kind.num_steps, seed + i))

    return await open_loop.run(at_seconds, kinds, send, drain_seconds=drain_seconds)


@click.command(context_settings={"show_default": True})
@click.option("--target", default="127.0.0.1:50051", help="HOST:PORT.")
@click.option("--protocol", type=click.Choice(list(TARGETS)), default="grpc")
@click.option("--rate", type=float, default=20.0, help="Requests per second, on average.")
@click.option("--seconds", type=float, default=20.0, help="How long to send.")
@click.option("--arrival", type=click.Choice(["poisson", "bursts"]), default="poisson")
@click.option("--burst-size", type=click.IntRange(1), default=32)
@click.option("--mixture", default="0.9:1x10,0.1:4x50", help="SHARE:IMAGESxSTEPS, ...")
@click.option("--latency-bound", type=float, default=1.0, help="Seconds; what counts as goodput.")
@click.option("--drain", type=float, default=60.0, help="Seconds to wait for the last answers.")
@click.option("--seed", type=int, default=0, help="Of the arrivals and of the images.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--quick", is_flag=True, help="Two seconds, to see that it works.")
def main(
    *,
    target: str,
    protocol: str,
    rate: float,
    seconds: float,
    arrival: str,
    burst_size: int,
    mixture: str,
    latency_bound: float,
    drain: float,
    seed: int,
    csv_path: Path | None,
    plot_path: Path | None,
    quick: bool,
) -> None:
    """Sends requests at their times and says how long they took."""
    seconds = min(seconds, 2.0) if quick else seconds
    requests = max(1, round(rate * seconds))
    try:
        kinds = arrivals.kinds_in_order(arrivals.parse_mixture(mixture), requests, seed)
        at_seconds = (
            arrivals.poisson(rate, requests, seed)
            if arrival == "poisson"
            else arrivals.bursts(rate, requests, burst_size)
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    async def run() -> list[open_loop.Record]:
        async with TARGETS[protocol](target) as connected:
            return await send_all(connected, at_seconds, kinds, seed, drain)

    records = asyncio.run(run())
    offered = float(np.sum([kind.rows for kind in kinds])) / seconds
    print(f"{target}, {arrival} at {rate:g} requests/s for {seconds:g} s: {offered:.0f} rows/s")
    for name, of_kind in sorted(summary.by_kind(records).items()):
        print(f"\n{name} (images x steps)\n{summary.summarise(of_kind, latency_bound).lines()}")
    everything = summary.summarise(records, latency_bound)
    print(f"\nall\n{everything.lines()}")
    if csv_path is not None:
        summary.write_csv(records, csv_path)
    if plot_path is not None:
        plot(records, f"{target}: {arrival}, {rate:g} requests/s of {mixture}", plot_path)
    if not everything.ok:
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.load")
