"""Our server and its peers: same network, weights, sampler and machine, in turns.

    python -m benchmarks.peers

Environments: `make bench-peers`.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks import results
from benchmarks.load.open_loop import Failed, Refused
from benchmarks.load.summary import percentile
from benchmarks.peers import workloads
from benchmarks.peers.drawing import Drawing, Pixels
from benchmarks.peers.processes import (
    OURS,
    OURS_IN_8_BITS,
    OWN,
    PEERS,
    Peer,
    PeerUnavailable,
    Running,
    end_like_ctrl_c,
    started,
)
from benchmarks.peers.workloads import QUICK, Sizes
from benchmarks.results import Spread

_EQUALITY = Drawing(label=3, count=16, num_steps=20, seed=7, shared_noise=True)
_LEAST_WITHIN_1 = {"8 bits": 0.85, "bf16": 0.95}
"""Share of pixels that a peer in this precision must draw within 1/255 of ours in float32."""

_LEAST_WITHIN_1_IN_FLOAT32 = 0.999


class Comparison:
    """One run of all peers.

    Args:
        sizes: how long everything takes.
        cpu_features: what the CPU can do, as results.machine() says it.
        own_load: whether the peers too have a mixed load of 80 % of their own capacity.
    """

    def __init__(
        self, sizes: Sizes, cpu_features: Collection[str], *, own_load: bool = False
    ) -> None:
        self._sizes = sizes
        self._cpu_features = cpu_features
        self._own_load = own_load
        self.data: dict[str, Any] = {
            "sizes": sizes,
            "peers": {},
            "unavailable": {},
        }
        self._running: list[Running] = []

    async def run(self, peers: list[Peer]) -> None:
        """Starts the peers and puts what is measured into `data`.

        Raises:
            click.ClickException: our own server does not run.
        """
        async with contextlib.AsyncExitStack() as stack:
            for peer in peers:
                click.echo(f"starting {peer.name}")
                try:
                    peer.require(self._cpu_features)
                    self._running.append(await stack.enter_async_context(started(peer)))
                    self._running[-1].stop()
                except PeerUnavailable as reason:
                    self._leave_out(peer, reason)
            click.echo("equality of the images")
            async with self._ours.turn() as ours:
                reference = await ours.target.draw(_EQUALITY)
            await self._each(lambda one: self._prove_equality(one, reference))
            click.echo("latency on an idle server")
            await self._each(self._unloaded)
            await self._saturation()
            self._keep_fastest_diffusers()
            smallest = min(self._capacity(each) for each in self._running)
            await self._each(lambda one: self._mixed(one, workloads.LOAD * smallest))
            await self._each(lambda one: self._bursts(one, workloads.BURST_LOAD * smallest))

    @property
    def _ours(self) -> Running:
        for each in self._running:
            if each.peer.name == OURS:
                return each
        raise click.ClickException(f"our own server: {self.data['unavailable'].get(OURS)}")

    async def _each(self, measure: Callable[[Running], Awaitable[None]]) -> None:
        """Measures one peer after the other, the others stopped; who fails is left out."""
        for each in list(self._running):
            try:
                async with each.turn() as connected:
                    await measure(connected)
                    await each.wait_idle()
            except (Failed, Refused, PeerUnavailable) as reason:
                if each is self._ours:
                    raise click.ClickException(f"our own server: {reason}") from reason
                self._running.remove(each)
                self._leave_out(each.peer, reason)

    def _leave_out(self, peer: Peer, reason: Exception) -> None:
        click.echo(f"  {peer.name} is left out: {reason}", err=True)
        self.data["unavailable"][peer.name] = str(reason)
        if "rows_per_second" not in self.data["peers"].get(peer.name, {}):
            self.data["peers"].pop(peer.name, None)  # too little for the tables

    def _of(self, running: Running) -> dict[str, Any]:
        entry: dict[str, Any] = self.data["peers"].setdefault(
            running.peer.name, {"what": running.peer.what}
        )
        return entry

    async def _prove_equality(self, running: Running, reference: Pixels) -> None:
        """The peer draws from our server's noise; this warms it up too."""
        differs = workloads.compare(await running.target.draw(_EQUALITY), reference)
        least = next(
            (share for name, share in _LEAST_WITHIN_1.items() if name in running.peer.name),
            _LEAST_WITHIN_1_IN_FLOAT32,
        )
        if differs["share_within_1"] < least:
            raise PeerUnavailable(f"it draws other images: {differs}")
        self._of(running)["difference"] = differs

    async def _unloaded(self, running: Running) -> None:
        await workloads.unloaded_seconds(running.target, 2)
        latencies = await workloads.unloaded_seconds(running.target, self._sizes.unloaded_requests)
        self._of(running)["unloaded_seconds"] = {
            "median": percentile(latencies, 50),
            "p99": percentile(latencies, 99),
        }

    async def _saturation(self) -> None:
        rates: dict[str, list[float]] = {}
        seeds = itertools.count(0, 10**6)

        async def turn(running: Running) -> None:
            rate = await workloads.saturation_rows_per_second(running, self._sizes, next(seeds))
            rates.setdefault(running.peer.name, []).append(rate)
            click.echo(f"  {running.peer.name}: {rate:.0f} rows/s")

        for number in range(self._sizes.rounds):
            click.echo(f"saturation, round {number + 1} of {self._sizes.rounds}")
            await self._each(turn)
        for each in self._running:
            own = rates[each.peer.name]
            entry = self._of(each)
            entry["rows_per_second"] = Spread.of(own)
            for name, key in ((OURS, "ours_to_this"), (OURS_IN_8_BITS, "ours_in_8_bits_to_this")):
                # Turn by turn, so that what the machine did meanwhile meets both.
                ratios = [a / b for a, b in zip(rates.get(name, []), own, strict=False)]
                entry[key] = Spread.of(ratios) if ratios else None
            entry["resident_bytes_at_saturation"] = each.memory().resident_bytes

    def _capacity(self, running: Running) -> float:
        rate: Spread = self._of(running)["rows_per_second"]
        return rate.median

    def _keep_fastest_diffusers(self) -> None:
        """Of the variants of diffusers, the rest would take time."""
        variants = [each for each in self._running if each.peer.name.startswith("diffusers")]
        for each in sorted(variants, key=self._capacity)[:-1]:
            self._running.remove(each)

    async def _mixed(self, running: Running, equal_load: float) -> None:
        """At one load for all, and our servers at 80 % of their own capacity too.

        The load is 80 % of the smallest capacity, so every peer has at least as much room as at
        80 % of its own.
        """
        click.echo(f"mixed load, {equal_load:.0f} rows/s: {running.peer.name}")
        entry = self._of(running)
        entry["mixed_equal"] = await workloads.mixed(running.target, equal_load, self._sizes)
        if running.peer.name in OWN or self._own_load:
            await running.wait_idle()
            own = workloads.LOAD * self._capacity(running)
            click.echo(f"mixed load, {own:.0f} rows/s: {running.peer.name}")
            entry["mixed_own"] = await workloads.mixed(running.target, own, self._sizes)

    async def _bursts(self, running: Running, load: float) -> None:
        click.echo(f"bursts, {load:.0f} rows/s: {running.peer.name}")
        self._of(running)["bursts"] = await workloads.bursts(running.target, load, self._sizes)


@click.command(context_settings={"show_default": True})
@click.option("--quick", is_flag=True, help="A minute, to see that it works.")
@click.option("--only", multiple=True, help="Part of a peer's name; ours always run.")
@click.option("--mixed-requests", type=click.IntRange(10), help="Of each peer in the mixed load.")
@click.option("--own-load", is_flag=True, help="Peers at 80 % of their own capacity too: longer.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path))
def main(
    *,
    quick: bool,
    only: tuple[str, ...],
    mixed_requests: int | None,
    own_load: bool,
    output: Path | None,
) -> None:
    """Compares our server with its peers; about half an hour."""
    sizes = QUICK if quick else Sizes()
    if mixed_requests is not None:
        sizes = replace(sizes, mixed_requests=mixed_requests)
    peers = [p for p in PEERS if not only or p.name in OWN or any(o in p.name for o in only)]
    end_like_ctrl_c()
    before = results.machine()
    comparison = Comparison(sizes, before["features"], own_load=own_load)
    asyncio.run(comparison.run(peers))
    results.save("peers", comparison.data, before, quick=quick, output=output)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.peers")
