"""The section about peers."""

from typing import Any

from benchmarks.peers.processes import OURS, OURS_IN_8_BITS, OWN
from benchmarks.report.goals import Goal, goals
from benchmarks.results import milliseconds, number, paragraphs, spread, table

SMALL_NAME = "1 x 10"
RATIOS = {OURS: "ours_to_this", OURS_IN_8_BITS: "ours_in_8_bits_to_this"}
"""Which of our servers the ratios of an entry are of."""

_EAGER = "diffusers, eager fp32"
_AHEAD_OF = (
    "diffusers, compile fp32",
    "diffusers, eager bf16",
    "diffusers, compile bf16",
    "Triton",
    "LitServe",
)


def section(data: dict[str, Any]) -> str:
    """Markdown from the JSON of benchmarks.peers."""
    peers: dict[str, Any] = data["peers"]
    sizes = data["sizes"]
    return paragraphs(
        "Same network, same weights (in 8 bits where it says so), same sampler (DDPM, guidance 1,"
        " our plan's table), in one run."
        " Each peer is a process of its own with what its documentation advises for two cores, and"
        " with the number of rows in a batch (16, 32 or 64) that it is fastest with:\n\n"
        + "\n".join(f"- {name}: {entry['what']}." for name, entry in peers.items()),
        *(f"- {name} did not run: {why}." for name, why in data["unavailable"].items()),
        _equality(peers),
        _saturation(peers, sizes),
        _mixed(peers, sizes),
        _bursts(peers, sizes),
        goals(_goals(peers)),
    )


def _equality(peers: dict[str, Any]) -> str:
    rows = [
        (
            name,
            number(entry["difference"]["largest"]),
            f"{entry['difference']['mean']:.4f}",
            f"{100 * entry['difference']['share_within_1']:.2f} %",
        )
        for name, entry in peers.items()
        if name != OURS
    ]
    return (
        "### The images are the same\n\n"
        "16 images in 20 steps from the noise that our server draws, against our server's, in units"
        " of 1/255. (When speed is measured, each peer draws noise with its own library.)\n\n"
        + table(("peer", "largest difference", "mean", "pixels within 1"), rows)
    )


def _saturation(peers: dict[str, Any], sizes: dict[str, Any]) -> str:
    rows = [
        (
            name,
            spread(entry["rows_per_second"]),
            *(
                "" if name == own or not entry.get(key) else spread(entry[key])
                for own, key in RATIOS.items()
            ),
            milliseconds(entry["unloaded_seconds"]["median"]),
            f"{entry['resident_bytes_at_saturation'] / 1e6:,.0f} MB",
        )
        for name, entry in peers.items()
    ]
    return (
        "### Saturation with equal requests\n\n"
        f"{sizes['outstanding']} callers ask for one image in 10 steps each, again and again; loops"
        f" without a server draw {sizes['loop_batch']} images a call. {sizes['rounds']} turns of"
        f" {number(sizes['turn_seconds'])} s, interleaved. Network rows per second, median (range);"
        " and our rows per second by theirs, turn by turn.\n\n"
        + table(
            (
                "peer",
                "rows/s",
                "ours to this",
                "ours in 8 bits to this",
                "one image, idle server",
                "resident memory",
            ),
            rows,
        )
    )


def _load_rows(peers: dict[str, Any], workload: str, kind: str) -> list[tuple[str, ...]]:
    rows = []
    for name, entry in peers.items():
        if workload not in entry or kind not in entry[workload]["kinds"]:
            continue
        of_kind = entry[workload]["kinds"][kind]
        p99, unloaded = of_kind["p99_seconds"], entry["unloaded_seconds"]["median"]
        rows.append(
            (
                name,
                number(entry[workload]["offered_rows_per_second"]),
                *(milliseconds(of_kind[f"p{p}_seconds"]) for p in (50, 90, 99)),
                "-" if p99 is None else f"{number(p99 / unloaded, 2)}x",
                f"{100 * of_kind['goodput']:.0f} %",
                str(of_kind["refused"] + of_kind["failed"]),
                str(of_kind["unfinished"]),
            )
        )
    return rows


_LOAD_HEADER = (
    "peer", "rows/s offered", "p50", "p90", "p99", "p99 to idle", "within 1 s", "refused",
    "unfinished",
)  # fmt: skip


def _mixed(peers: dict[str, Any], sizes: dict[str, Any]) -> str:
    kinds = [f"{kind['count']} x {kind['num_steps']}" for kind in sizes["mixed"]]
    shares = " and ".join(
        f"{100 * kind['share']:.0f} % {name}"
        for kind, name in zip(sizes["mixed"], kinds, strict=True)
    )
    text = (
        "### Mixed load\n\n"
        f"Poisson arrivals of {shares} (images x steps), {sizes['mixed_requests']} requests, the"
        " same for every peer, latency from the time at which each was due. One load for all: 80 %"
        " of the smallest capacity, so that each has at least as much room as at 80 % of its own."
        " Of diffusers, the fastest variant. Percentiles are nearest rank: of few requests, the"
        f" 99th is the largest. Requests without an answer {number(sizes['drain_seconds'])} s after"
        " the last was sent are given up, and count with what they had waited.\n\n"
    )
    for kind in kinds:
        text += (
            f"{kind}:\n\n" + table(_LOAD_HEADER, _load_rows(peers, "mixed_equal", kind)) + "\n\n"
        )
    return text + "\n\n".join(
        f"At 80 % of its own capacity, {kind}:\n\n"
        + table(_LOAD_HEADER, _load_rows(peers, "mixed_own", kind))
        for kind in kinds
    )


def _bursts(peers: dict[str, Any], sizes: dict[str, Any]) -> str:
    return (
        "### Bursts\n\n"
        f"{sizes['burst_size']} requests for one image in 10 steps at once, {sizes['bursts']}"
        " times, evenly spaced; on average half of the smallest capacity.\n\n"
        + table(_LOAD_HEADER, _load_rows(peers, "bursts", SMALL_NAME))
    )


def _goals(peers: dict[str, Any]) -> list[Goal]:
    items = []
    for own, key in RATIOS.items():
        ratio = peers.get(_EAGER, {}).get(key)
        if ratio:
            items.append(
                Goal(
                    f"{own}: saturation at least 1.5 times {_EAGER}",
                    f"{spread(ratio)} times",
                    ratio["median"] >= 1.5,
                )
            )
        for name in _AHEAD_OF:
            if ratio := peers.get(name, {}).get(key):
                ahead = ratio["median"] > 1.0
                items.append(Goal(f"{own}: ahead of {name}", f"{spread(ratio)} times", ahead))
    for own in OWN:
        small = peers.get(own, {}).get("mixed_own", {}).get("kinds", {}).get(SMALL_NAME)
        if small and small["p99_seconds"] is not None:
            times = small["p99_seconds"] / peers[own]["unloaded_seconds"]["median"]
            items.append(
                Goal(
                    f"{own}: mixed load at 80 % of its capacity, p99 of small requests at most 3"
                    " times an idle server's",
                    f"{number(times)} times",
                    times <= 3.0,
                )
            )
    ours = _small_p99(peers, OURS)
    for name in peers:
        theirs = _small_p99(peers, name)
        if name not in OWN and ours and theirs:
            items.append(
                Goal(
                    f"Mixed load: p99 of small requests at least 10 times better than {name}",
                    f"{number(theirs / ours)} times",
                    theirs / ours >= 10.0,
                )
            )
    return items


def _small_p99(peers: dict[str, Any], name: str) -> float | None:
    kinds = peers[name].get("mixed_equal", {}).get("kinds", {})
    p99: float | None = kinds.get(SMALL_NAME, {}).get("p99_seconds")
    return p99
