"""What would make a network call faster: `python -m benchmarks.network_levers`.

Every lever is a way to write the graph or to set up the session. Calls of all of them are timed in
turns, in CPU time of one thread, which other work on the machine disturbs little; a lever's ratio
is its fastest call against the fastest call of the bundle as it is.

Ways to use several threads, OpenVINO among them, are timed by the clock, and need a machine that
does nothing else: `--threads 2`.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from benchmarks import graph_levers
from benchmarks.torch_unet import load_unet, model_config
from export.graphs import export_unet
from export.half_precision import layer_norms
from export.precision import Call, network_calls
from export.quantization import in_8_bits, sensitive_convolutions
from serving.bundle import Bundle, load_bundle
from serving.cpu_features import saturates_8_bits
from serving.network import OnnxNetwork
from serving.openvino_network import OpenVinoNetwork

Calls = list[Call]
Way = Callable[[Mapping[str, npt.NDArray[Any]]], npt.NDArray[Any]]
ROWS = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Lever:
    """A graph and how its session is set up.

    Attributes:
        rows_at_once: rows of a call that are run together; None for all.
    """

    name: str
    model: bytes
    optimization: Any = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    rows_at_once: int | None = None

    def session(self) -> onnxruntime.InferenceSession:
        """On one thread of the CPU."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = self.optimization
        options.log_severity_level = 3
        if saturates_8_bits():  # as the server
            options.add_session_config_entry("session.x64quantprecision", "1")
        return onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])


def levers(bundle: Bundle, calls: Calls) -> list[Lever]:
    """All of them; the first is the bundle as it is."""
    plain = onnx.load_from_string(bundle.unet_onnx)
    plain = onnx.shape_inference.infer_shapes(plain)
    sensitive = sensitive_convolutions(plain)
    full = [*sensitive, *graph_levers.full_resolution_convolutions(plain)]

    def written(model: onnx.ModelProto) -> bytes:
        content: bytes = model.SerializeToString()
        return content

    level = onnxruntime.GraphOptimizationLevel
    as_it_is = bundle.unet_onnx
    as_trained = export_unet(load_unet(bundle), model_config(bundle))
    return [
        Lever("as it is", as_it_is),
        Lever("written as it is trained", as_trained),
        Lever("without NCHWc blocking", as_it_is, level.ORT_ENABLE_EXTENDED),
        Lever("basic optimisations only", as_it_is, level.ORT_ENABLE_BASIC),
        Lever("4 rows at once", as_it_is, rows_at_once=4),
        Lever("16 rows at once", as_it_is, rows_at_once=16),
        Lever("norms as LayerNormalization", written(layer_norms(plain))),
        Lever("attention as one operator", written(graph_levers.fused_attention(plain))),
        Lever("FiLM from a table", written(graph_levers.film_from_table(plain))),
        Lever("int8: all convolutions", written(in_8_bits(plain, calls))),
        Lever(
            "int8: all but the sensitive", written(in_8_bits(plain, calls, sensitive))
        ),
        Lever(
            "int8: below full resolution", written(in_8_bits(plain, calls, full))
        ),
    ]  # fmt: skip


def inputs_of(
    session: onnxruntime.InferenceSession, rows: int, calls: Calls
) -> dict[str, npt.NDArray[Any]]:
    """Inputs for so many rows: of the calls, and random numbers for what they do not have."""
    x_t, emb = (np.concatenate([call[name] for call in calls])[:rows] for name in ("x_t", "emb"))
    generator = np.random.default_rng(0)
    given = {"x_t": x_t, "emb": emb}
    for tensor in session.get_inputs():
        if tensor.name not in given:
            shape = (rows, *tensor.shape[1:])
            given[tensor.name] = generator.normal(size=shape).astype(np.float32)
    return given


def seconds_of(
    session: onnxruntime.InferenceSession, lever: Lever, given: Mapping[str, npt.NDArray[Any]]
) -> float:
    """CPU time of one call."""
    rows = len(given["x_t"])
    at_once = lever.rows_at_once or rows
    parts = [
        {name: array[first : first + at_once] for name, array in given.items()}
        for first in range(0, rows, at_once)
    ]
    begin = time.thread_time()
    for part in parts:
        session.run(["eps"], part)
    return time.thread_time() - begin


def measure(tried: Sequence[Lever], calls: Calls, rows: int, turns: int) -> dict[str, float]:
    """The fastest call of every lever, seconds of CPU time."""
    sessions = [lever.session() for lever in tried]
    inputs = [inputs_of(session, rows, calls) for session in sessions]
    fastest = dict.fromkeys((lever.name for lever in tried), float("inf"))
    for _ in range(turns):
        for lever, session, given in zip(tried, sessions, inputs, strict=True):
            for _ in range(max(1, 8 // rows)):
                seconds = seconds_of(session, lever, given)
                fastest[lever.name] = min(fastest[lever.name], seconds)
    return fastest


def differences(tried: Sequence[Lever], calls: Calls) -> dict[str, float | None]:
    """Root mean square of eps against the bundle's own; None where the inputs are others."""
    found: dict[str, float | None] = {}
    expected = [tried[0].session().run(["eps"], call)[0] for call in calls]
    for lever in tried:
        session = lever.session()
        if len(session.get_inputs()) != len(calls[0]):
            found[lever.name] = None
            continue
        squares = [
            np.mean((session.run(["eps"], call)[0] - eps) ** 2, dtype=np.float64)
            for call, eps in zip(calls, expected, strict=True)
        ]
        found[lever.name] = float(np.sqrt(np.mean(squares)))
    return found


def change_by_convolution(bundle: Bundle, calls: Calls, held_out: Calls) -> dict[str, float]:
    """Root mean square of the change of eps with one convolution in 8 bits, by its weight."""
    plain = onnx.shape_inference.infer_shapes(onnx.load_from_string(bundle.unet_onnx))
    convolutions = {n.input[1]: n.name for n in plain.graph.node if n.op_type == "Conv"}
    tried = [Lever("as it is", bundle.unet_onnx)]
    for weight, name in convolutions.items():
        others = set(convolutions.values()) - {name}
        tried.append(Lever(weight, in_8_bits(plain, calls, others).SerializeToString()))
    changes = differences(tried, held_out)
    return {weight: changes[weight] or 0.0 for weight in convolutions}


def thread_ways(bundle: Bundle, threads: int) -> dict[str, Way]:
    """Ways to use several threads for one call."""
    split_by_node = {
        "each node by all threads, waiting asleep": {},
        "each node by all threads, waiting awake in a call": {
            "session.intra_op.allow_spinning": "1",
            "session.force_spinning_stop": "1",
        },
        "each node by all threads, waiting awake always": {"session.intra_op.allow_spinning": "1"},
    }

    def session(number: int, entries: Mapping[str, str]) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = number, 1
        for name, value in ({"session.intra_op.allow_spinning": "0"} | dict(entries)).items():
            options.add_session_config_entry(name, value)
        return onnxruntime.InferenceSession(
            bundle.unet_onnx, options, providers=["CPUExecutionProvider"]
        )

    def in_one(whole: onnxruntime.InferenceSession) -> Way:
        return lambda given: whole.run(["eps"], dict(given))[0]

    pool = ThreadPoolExecutor(threads)

    def in_parts(sessions: Sequence[onnxruntime.InferenceSession]) -> Way:
        def way(given: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
            rows = len(given["x_t"])
            edges = np.linspace(0, rows, min(threads, rows) + 1).astype(int).tolist()
            parts = [
                {name: array[first:last] for name, array in given.items()}
                for first, last in itertools.pairwise(edges)
            ]
            eps = pool.map(lambda each, part: each.run(["eps"], part)[0], sessions, parts)
            return np.concatenate([*eps])

        return way

    single = session(1, {})
    return {name: in_one(session(threads, entries)) for name, entries in split_by_node.items()} | {
        "each thread its own rows, one session for all": in_parts([single] * threads),
        "each thread its own rows and session (as it is, from 2 rows on)": in_parts(
            [session(1, {}) for _ in range(threads)]
        ),
    }


def runtimes(bundle: Bundle, calls: Calls, threads: int) -> dict[str, Way]:
    """The server's networks, in float32 and in 8 bits; the first is the bundle as it is."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(bundle.unet_onnx))
    quantised = in_8_bits(model, calls, sensitive_convolutions(model)).SerializeToString()
    in_bits = {"float32": bundle, "8 bits": replace(bundle, unet_onnx=quantised)}
    kinds = {"ONNX Runtime": OnnxNetwork, "OpenVINO": OpenVinoNetwork}

    def way(network: OnnxNetwork | OpenVinoNetwork) -> Way:
        return lambda given: network(given["x_t"], given["emb"])

    return {
        f"{runtime}, {precision}": way(kind(each, num_threads=threads))
        for runtime, kind in kinds.items()
        for precision, each in in_bits.items()
        if kind is OnnxNetwork or precision == "float32" or not saturates_8_bits()
    }


def way_differences(ways: Mapping[str, Way], calls: Calls) -> dict[str, float]:
    """Root mean square of eps against the first's."""
    first = next(iter(ways.values()))
    found = {}
    for name, way in ways.items():
        squares = [np.mean((way(call) - first(call)) ** 2, dtype=np.float64) for call in calls]
        found[name] = float(np.sqrt(np.mean(squares)))
    return found


def measure_ways(ways: Mapping[str, Way], calls: Calls, rows: int, turns: int) -> dict[str, float]:
    """The median call of every way, seconds by the clock."""
    given = {name: np.concatenate([call[name] for call in calls])[:rows] for name in ("x_t", "emb")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            begin = time.perf_counter()
            way(given)
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(
    heading: str, times: Mapping[int, Mapping[str, float]], last: Mapping[str, str]
) -> None:
    """Each lever's time against the first's, by rows."""
    base = next(iter(last))
    click.echo(heading)
    click.echo("| lever | " + " | ".join(f"{rows} rows" for rows in times) + " | RMS of eps |")
    click.echo("|---" * (len(times) + 2) + "|")
    for name, cell in last.items():
        ratios = [f"{measured[name] / measured[base]:.3f}" for measured in times.values()]
        click.echo(f"| {name} | {' | '.join(ratios)} | {cell} |")
    per_row = ", ".join(f"{1e3 * each[base] / rows:.2f}" for rows, each in times.items())
    click.echo(f"The first: {per_row} ms per row.")


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=Path("models/mnist"))
@click.option("--turns", type=click.IntRange(1), default=15, help="Calls of each lever and size.")
@click.option("--threads", type=click.IntRange(1), default=1, help="From 2 on: their ways instead.")
@click.option("--by-convolution", is_flag=True, help="Instead: what each harms alone in 8 bits.")
def main(*, model: Path, turns: int, threads: int, by_convolution: bool) -> None:
    """Prints each lever's time against that of the bundle as it is."""
    bundle = load_bundle(model)
    calls = network_calls(bundle, seed=1)
    runtime = f"{bundle.manifest.name}, ONNX Runtime {onnxruntime.__version__}"
    held_out = network_calls(bundle, seed=2)
    if by_convolution:
        changes = change_by_convolution(bundle, calls, held_out)
        for weight, rms in sorted(changes.items(), key=lambda each: -each[1]):
            click.echo(f"{rms:.4f}  {weight}")
        return
    if threads > 1:
        for ways in (thread_ways(bundle, threads), runtimes(bundle, calls, threads)):
            last = {name: f"{rms:.2g}" for name, rms in way_differences(ways, held_out).items()}
            times = {rows: measure_ways(ways, calls, rows, turns) for rows in ROWS}
            print_table(f"{runtime}, {threads} threads by the clock", times, last)
        return
    tried = levers(bundle, calls)
    off = differences(tried, calls)
    times = {rows: measure(tried, calls, rows, turns) for rows in ROWS}
    last = {name: "-" if rms is None else f"{rms:.2g}" for name, rms in off.items()}
    print_table(f"{runtime}, CPU time of one thread", times, last)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.network_levers")
