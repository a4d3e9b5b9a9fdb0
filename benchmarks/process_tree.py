"""Memory and CPU time of a process and everything that it started (Linux)."""

import contextlib
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a tree of processes.

    Attributes:
        resident_bytes: as `ps` and container limits count it, summed over the processes.
        proportional_bytes: with pages that several processes share counted once, in shares.
        processes: how many.
    """

    resident_bytes: int
    proportional_bytes: int
    processes: int


def memory_of_tree(pid: int) -> Memory:
    """Reads the memory of a process and its descendants.

    Raises:
        ProcessLookupError: if there is no such process.
    """
    resident = proportional = count = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):  # it may end in between
            rollup = (_PROC / str(each) / "smaps_rollup").read_text(encoding="ascii")
            resident += _kibibytes(rollup, "Rss")
            proportional += _kibibytes(rollup, "Pss")
            count += 1
    if not count:
        raise ProcessLookupError(pid)
    return Memory(1024 * resident, 1024 * proportional, count)


def signal_tree(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process and its descendants."""
    for each in _tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)


def cpu_seconds_of_tree(pid: int) -> float:
    """CPU time so far of a process and its descendants that still run, user and system."""
    ticks = 0
    for each in _tree(pid):
        with contextlib.suppress(OSError):
            fields = _stat(each)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_seconds_of_threads(pid: int) -> dict[int, float]:
    """CPU time so far of each thread of a process that still runs, by the thread's id."""
    seconds = {}
    for thread in (_PROC / str(pid) / "task").iterdir():
        with contextlib.suppress(OSError):  # it may end in between
            nanoseconds = (thread / "schedstat").read_text(encoding="ascii").split()[0]
            seconds[int(thread.name)] = int(nanoseconds) / 1e9
    return seconds


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for directory in _PROC.iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int(_stat(int(directory.name))[1])
                children.setdefault(parent, []).append(int(directory.name))
    tree = [pid]
    for each in tree:  # grows while it is read
        tree += children.get(each, [])
    return tree


def _stat(pid: int) -> list[str]:
    """What follows the command in /proc/PID/stat; the command may hold anything."""
    text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def _kibibytes(rollup: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(match.group(1)) if match else 0
