"""How far one network call is from the machine's fp32 peak, and where the rest goes.

    python -m benchmarks.limit

The network's multiply-adds are counted from its graph; normalisation, activations and softmax are
not counted, so the time that they take shows as distance from the peak.
"""

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime

from benchmarks import results
from benchmarks.results import Spread
from benchmarks.roof import FLOP_PER_MULTIPLY_ADD, candidates, fastest_seconds
from export.structure import multiply_adds
from serving.bundle import Bundle, load_bundle
from serving.cpu_count import usable_cpus
from serving.network import OnnxNetwork

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
PROFILED_BATCH = 32


def measure(
    bundle: Bundle, batch_sizes: tuple[int, ...], rounds: int, budget_seconds: float
) -> dict[str, Any]:
    """Lets the peak's candidates and the network's batch sizes take turns.

    Args:
        bundle: of the network.
        batch_sizes: rows of a call.
        rounds: turns of each.
        budget_seconds: of each turn; the fastest call in it counts.
    """
    threads = usable_cpus()
    network = OnnxNetwork(bundle, num_threads=threads)
    per_row = FLOP_PER_MULTIPLY_ADD * multiply_adds(onnx.load_from_string(bundle.unet_onnx))
    peaks = candidates(threads)
    peak_rates: dict[str, list[float]] = {name: [] for name in peaks}
    rates: dict[int, list[float]] = {batch: [] for batch in batch_sizes}
    shares: dict[int, list[float]] = {batch: [] for batch in batch_sizes}
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((max(batch_sizes), *bundle.manifest.image_shape), dtype=np.float32)
    width = bundle.manifest.embedding_width
    emb = rng.standard_normal((max(batch_sizes), width), dtype=np.float32)
    for _ in range(rounds):
        for name, (flop, call) in peaks.items():
            peak_rates[name].append(flop / fastest_seconds(call, budget_seconds))
        peak = max(values[-1] for values in peak_rates.values())
        for batch in batch_sizes:
            x, e = x_t[:batch], emb[:batch]
            seconds = fastest_seconds(lambda x=x, e=e: network(x, e), budget_seconds)  # type: ignore[misc]
            rates[batch].append(per_row * batch / seconds)
            shares[batch].append(rates[batch][-1] / peak)
    return {
        "threads": threads,
        "multiply_adds_per_row": per_row // FLOP_PER_MULTIPLY_ADD,
        "peaks": {name: Spread.of(values) for name, values in peak_rates.items()},
        "batches": {
            str(batch): {
                "flop_per_second": Spread.of(rates[batch]),
                "share_of_peak": Spread.of(shares[batch]),
            }
            for batch in batch_sizes
        },
        "profile": profile(bundle, min(PROFILED_BATCH, max(batch_sizes)), threads),
    }


def profile(bundle: Bundle, batch: int, num_threads: int, calls: int = 20) -> dict[str, Any]:
    """Where the time of a call goes, by operator, as ONNX Runtime's profiler says.

    Args:
        bundle: of the network.
        batch: rows of a call.
        num_threads: of a call.
        calls: that are averaged over.
    """
    with tempfile.TemporaryDirectory() as directory:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the server
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(directory) / "profile")
        session = onnxruntime.InferenceSession(
            bundle.unet_onnx, sess_options=options, providers=["CPUExecutionProvider"]
        )
        rng = np.random.default_rng(0)
        inputs = {
            "x_t": rng.standard_normal((batch, *bundle.manifest.image_shape), dtype=np.float32),
            "emb": rng.standard_normal((batch, bundle.manifest.embedding_width), dtype=np.float32),
        }
        for _ in range(calls + 1):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return by_operator(events, batch)


def by_operator(events: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Sums up a profile; its first call, which warms up, is left out.

    Args:
        events: as ONNX Runtime writes them; times in microseconds.
        batch: rows of each call.
    """
    runs = [each for each in events if each["name"] == "model_run"]
    begin, calls = runs[0]["ts"] + runs[0]["dur"], len(runs) - 1
    microseconds: defaultdict[str, float] = defaultdict(float)
    nodes: defaultdict[str, set[str]] = defaultdict(set)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            if event["ts"] < begin:
                continue
            operator = event["args"]["op_name"]
            microseconds[operator] += event["dur"]
            nodes[operator].add(event["name"])
    call_seconds = sum(each["dur"] for each in runs[1:]) / calls / 1e6
    operators = {
        name: {
            "nodes": len(nodes[name]),
            "seconds": total / calls / 1e6,
            "share": total / calls / 1e6 / call_seconds,
        }
        for name, total in sorted(microseconds.items(), key=lambda item: -item[1])
    }
    return {"batch": batch, "call_seconds": call_seconds, "operators": operators}


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(path_type=Path), default=Path("models/mnist"))
@click.option("--rounds", type=click.IntRange(1), default=5)
@click.option("--quick", is_flag=True, help="A few seconds, to see that it works.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path))
def main(*, model: Path, rounds: int, quick: bool, output: Path | None) -> None:
    """Measures the peak and the network in turns; about a minute and a half."""
    before = results.machine()
    batch_sizes, budget_seconds = ((1, 8), 0.05) if quick else (BATCH_SIZES, 0.6)
    data = measure(load_bundle(model), batch_sizes, 1 if quick else rounds, budget_seconds)
    results.save("limit", data, before, quick=quick, output=output)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.limit")
