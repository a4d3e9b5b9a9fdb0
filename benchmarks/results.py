"""What a benchmark leaves behind: one JSON file, which the page of results is composed from."""

import datetime as dt
import importlib.metadata
import json
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from serving.cpu_count import usable_cpus

DIRECTORY = Path("benchmarks/results")
QUICK_DIRECTORY = Path("build/benchmarks")
BFLOAT16_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")  # the last is Arm's
_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", *BFLOAT16_FEATURES)
_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "grpcio")


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one quantity.

    Attributes:
        median, low, high: of the values.
        count: how many there were.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Sums values up; at least one."""
        numbers = sorted(values)
        return cls(statistics.median(numbers), numbers[0], numbers[-1], len(numbers))


def machine() -> dict[str, Any]:
    """The machine and what runs on it, as far as it bears on speed."""
    cpuinfo = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:(.+)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cpus": usable_cpus(),
        "features": [flag for flag in _FLAGS if flags and flag in flags[1].split()],
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "busy_before": busy_share(),
    }


def busy_share(seconds: float = 1.0) -> float | None:
    """Share of all CPU time that others use while this process sleeps; None if it cannot be told.

    Time that another virtual machine took from this one ("steal") counts too.
    """
    first = _cpu_times()
    time.sleep(seconds)
    passed = [after - before for before, after in zip(first, _cpu_times(), strict=True)]
    total = sum(passed)
    idle = sum(passed[3:5])  # idle, and waiting for a disk
    return round(1 - idle / total, 3) if total else None


def save(
    benchmark: str,
    data: dict[str, Any],
    before: dict[str, Any],
    *,
    quick: bool,
    output: Path | None,
) -> Path:
    """Writes the result of a benchmark and says where.

    Args:
        benchmark: its name, and the file's.
        data: what was measured.
        before: from machine(), as it was before the measurement.
        quick: whether it was only tried out.
        output: directory; None for benchmarks/results, or a build directory for a quick run.
    """
    directory = output or (QUICK_DIRECTORY if quick else DIRECTORY)
    directory.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": benchmark,
        "command": _command(),
        "quick": quick,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": before,
        "data": data,
    }
    path = directory / f"{benchmark}.json"
    path.write_text(json.dumps(result, indent=1, default=asdict) + "\n", encoding="utf-8")
    click.echo(f"wrote {path}")
    return path


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(each) + " |" for each in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def paragraphs(*parts: str) -> str:
    """The parts that are not empty, with an empty line between them."""
    return "\n\n".join(part.strip() for part in parts if part)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent; a dash for None."""
    if value is None:
        return "-"
    if value == 0 or not -15 < value < 1e15:
        return f"{value:g}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"


def spread(value: dict[str, float], scale: float = 1.0, digits: int = 3) -> str:
    """A Spread from JSON: its median, and its range."""
    median, low, high = (number(scale * value[each], digits) for each in ("median", "low", "high"))
    return median if value["count"] == 1 else f"{median} ({low} to {high})"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds; from one second on as seconds."""
    if seconds is None:
        return "-"
    return f"{number(seconds)} s" if seconds >= 1 else f"{number(1000 * seconds)} ms"


def _command() -> str:
    module = sys.modules["__main__"].__spec__
    name = (module.name if module else sys.argv[0]).removesuffix(".__main__")
    return shlex.join(["python", "-m", name, *sys.argv[1:]])


def _cpu_times() -> list[int]:
    """Of all CPUs together: user, nice, system, idle, iowait, irq, softirq, steal; see proc(5)."""
    line = re.match(r"cpu +(.+)", _read("/proc/stat"))
    return [int(each) for each in line[1].split()[:8]] if line else []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
