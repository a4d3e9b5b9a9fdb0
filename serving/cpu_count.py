"""How many CPUs this process may use, quotas included (ONNX Runtime looks at the machine only)."""

import itertools
import os
import sys
from pathlib import Path

_MOST_WORKERS = 8
"""Who compute at once on the CPU: each costs memory for the weights and work between its steps."""


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, cut to its control group's quota; 1 or more."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    cpus = float(len(os.sched_getaffinity(0)))
    for quota in _cpu_quotas(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")):
        cpus = min(cpus, quota)
    return max(1, int(cpus))


def shares_of_threads(num_threads: int) -> list[range]:
    """The threads 0 .. num_threads - 1 as they are shared out to workers, one each if they are few.

    A batch is computed by one worker: threads that share every operator of a network wait for the
    slowest of them at each, and whoever else wants a processor for a moment holds up all of them.
    """
    workers = min(num_threads, _MOST_WORKERS)
    least, more = divmod(num_threads, workers)
    ends = [least * worker + min(worker, more) for worker in range(workers + 1)]
    return [range(*between) for between in itertools.pairwise(ends)]


def _cpu_quotas(cgroups: Path, own: Path) -> list[float]:
    """CPUs allowed by each quota above this process, in control groups of version 2 and 1."""
    quotas = []
    for line in _lines(own):
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root = cgroups
        elif "cpu" in controllers.split(","):
            root = cgroups / "cpu"
        else:
            continue
        # In a container the path may be the host's, which is not there: then the root is its own.
        directory = root / group.lstrip("/")
        for place in (directory, *directory.parents):
            if not place.is_relative_to(root):
                break
            limit = _lines(place / "cpu.max") or [
                " ".join(_lines(place / "cpu.cfs_quota_us") + _lines(place / "cpu.cfs_period_us"))
            ]
            match limit[0].split():
                case [quota, period] if quota.isdigit() and period.isdigit() and int(period) > 0:
                    quotas.append(int(quota) / int(period))
    return quotas


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
