"""What the system says about a server process. Linux only."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Vitals:
    """One look at a process."""

    rss_bytes: int
    threads: int
    files: int


def vitals(pid: int) -> Vitals:
    """Reads /proc: the process must be one of ours."""
    process = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text("ascii").splitlines()
    )
    rss_kib = int(status["VmRSS"].split()[0])
    files = sum(1 for _ in (process / "fd").iterdir())
    return Vitals(rss_kib * 1024, int(status["Threads"]), files)


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used since its start, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
