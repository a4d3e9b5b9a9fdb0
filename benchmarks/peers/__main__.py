"""Our server and its peers: same network, weights, sampler and machine, in turns.

    python -m benchmarks.peers

Environments: `make bench-peers`.
"""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks import results
from benchmarks.load.summary import percentile
from benchmarks.peers import workloads
from benchmarks.peers.drawing import Drawing
from benchmarks.peers.processes import OURS, PEERS, Peer, PeerUnavailable, Running, started
from benchmarks.peers.workloads import QUICK, Sizes
from benchmarks.results import Spread

_EQUALITY = Drawing(label=3, count=16, num_steps=20, seed=7, shared_noise=True)
_LEAST_WITHIN_1 = {"fp32": 0.999, "bf16": 0.95}
"""Share of pixels that a peer must draw within 1/255 of ours."""


class Comparison:
    """One run of all peers.

    Args:
        sizes: how long everything takes.
    """

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self.data: dict[str, Any] = {
            "sizes": sizes,
            "peers": {},
            "unavailable": {},
        }

    async def run(self, peers: list[Peer]) -> None:
        """Starts the peers and puts what is measured into `data`."""
        async with contextlib.AsyncExitStack() as stack:
            running = []
            for peer in peers:
                click.echo(f"starting {peer.name}")
                try:
                    running.append(await stack.enter_async_context(started(peer)))
                except PeerUnavailable as reason:
                    click.echo(f"  {reason}")
                    self.data["unavailable"][peer.name] = str(reason)
            await self._prove_equality(running)
            await self._unloaded(running)
            await self._saturation(running)
            chosen = self._with_fastest_diffusers(running)
            await self._mixed(chosen)
            await self._bursts(chosen)

    def _of(self, running: Running) -> dict[str, Any]:
        entry: dict[str, Any] = self.data["peers"].setdefault(
            running.peer.name, {"what": running.peer.what}
        )
        return entry

    async def _prove_equality(self, running: list[Running]) -> None:
        """Each peer draws from our server's noise; this warms them up too."""
        click.echo("equality of the images")
        [ours] = [each for each in running if each.peer.name == OURS]
        reference = await ours.target.draw(_EQUALITY)
        for each in running:
            differs = workloads.compare(await each.target.draw(_EQUALITY), reference)
            precision = "bf16" if "bf16" in each.peer.name else "fp32"
            equal = differs["share_within_1"] >= _LEAST_WITHIN_1[precision]
            self._of(each)["difference"] = {**differs, "precision": precision, "equal": equal}
            if not equal:
                raise click.ClickException(f"{each.peer.name} draws other images: {differs}")

    async def _unloaded(self, running: list[Running]) -> None:
        click.echo("latency on an idle server")
        for each in running:
            await workloads.unloaded_seconds(each.target, 2)
            latencies = await workloads.unloaded_seconds(each.target, self._sizes.unloaded_requests)
            self._of(each)["unloaded_seconds"] = {
                "median": percentile(latencies, 50),
                "p99": percentile(latencies, 99),
            }

    async def _saturation(self, running: list[Running]) -> None:
        rates: dict[str, list[float]] = {each.peer.name: [] for each in running}
        seed = 0
        for each in running:  # a turn that does not count: shapes are compiled in it
            await workloads.saturation_rows_per_second(each, self._sizes, 1.0, seed)
        for turn in range(self._sizes.rounds):
            click.echo(f"saturation, round {turn + 1} of {self._sizes.rounds}")
            for each in running:
                seed += 10**6
                rate = await workloads.saturation_rows_per_second(
                    each, self._sizes, self._sizes.turn_seconds, seed
                )
                rates[each.peer.name].append(rate)
                click.echo(f"  {each.peer.name}: {rate:.0f} rows/s")
        for each in running:
            own, ours = rates[each.peer.name], rates[OURS]
            entry = self._of(each)
            entry["rows_per_second"] = Spread.of(own)
            # Turn by turn, so that what the machine did meanwhile meets both.
            entry["ours_to_this"] = Spread.of(a / b for a, b in zip(ours, own, strict=True))
            entry["resident_bytes_at_saturation"] = each.memory().resident_bytes

    def _capacity(self, running: Running) -> float:
        rate: Spread = self._of(running)["rows_per_second"]
        return rate.median

    def _with_fastest_diffusers(self, running: list[Running]) -> list[Running]:
        """All peers, but of the variants of diffusers the fastest alone: the rest takes time."""
        variants = [each for each in running if each.peer.name.startswith("diffusers")]
        fastest = max(variants, key=self._capacity, default=None)
        return [each for each in running if each not in variants or each is fastest]

    async def _mixed(self, running: list[Running]) -> None:
        """At one load for all, 80 % of the smallest capacity; and ours at 80 % of its own.

        So every other peer has more room here than at 80 % of its own capacity.
        """
        equal = workloads.LOAD * min(self._capacity(each) for each in running)
        for each in running:
            click.echo(f"mixed load, {equal:.0f} rows/s: {each.peer.name}")
            self._of(each)["mixed_equal"] = await workloads.mixed(each.target, equal, self._sizes)
            if each.peer.name == OURS:
                own = workloads.LOAD * self._capacity(each)
                click.echo(f"mixed load, {own:.0f} rows/s: {each.peer.name}")
                self._of(each)["mixed_own"] = await workloads.mixed(each.target, own, self._sizes)

    async def _bursts(self, running: list[Running]) -> None:
        load = workloads.BURST_LOAD * min(self._capacity(each) for each in running)
        for each in running:
            click.echo(f"bursts, {load:.0f} rows/s: {each.peer.name}")
            self._of(each)["bursts"] = await workloads.bursts(each.target, load, self._sizes)


@click.command(context_settings={"show_default": True})
@click.option("--quick", is_flag=True, help="A minute, to see that it works.")
@click.option("--only", multiple=True, help="Part of a peer's name; ours always runs.")
@click.option("--mixed-requests", type=click.IntRange(10), help="Of each peer in the mixed load.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path))
def main(
    *, quick: bool, only: tuple[str, ...], mixed_requests: int | None, output: Path | None
) -> None:
    """Compares our server with its peers; about a quarter of an hour."""
    sizes = QUICK if quick else Sizes()
    if mixed_requests is not None:
        sizes = replace(sizes, mixed_requests=mixed_requests)
    peers = [p for p in PEERS if not only or p.name == OURS or any(o in p.name for o in only)]
    before = results.machine()
    comparison = Comparison(sizes)
    asyncio.run(comparison.run(peers))
    results.save("peers", comparison.data, before, quick=quick, output=output)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.peers")
