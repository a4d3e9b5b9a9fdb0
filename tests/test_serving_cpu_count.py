"""How many CPUs may be used: control group quotas of both versions, and none."""

import os
from pathlib import Path

import pytest

from serving import cpu_count


def quotas(directory: Path, files: dict[str, str], own: str) -> list[float]:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    membership = directory / "own"
    membership.write_text(own)
    return cpu_count._cpu_quotas(directory, membership)


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", [1.5]),
        ({"cpu.max": "max 100000\n"}, "0::/\n", []),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, "0::/a/b\n", [2.0]),
        # The host's path, which a container does not see: the root is the container's own.
        ({"cpu.max": "300000 100000\n"}, "0::/kubepods/pod1\n", [3.0]),
        (
            {"cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/x\n3:memory:/y\n",
            [0.5],
        ),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", []),
        ({}, "0::/\n", []),
        ({}, "", []),
        ({"cpu.max": "nonsense\n"}, "0::/\n", []),
    ],
)
def test_quotas_of_control_groups_are_read(
    tmp_path: Path, files: dict[str, str], own: str, expected: list[float]
) -> None:
    assert quotas(tmp_path, files, own) == expected


@pytest.mark.parametrize(("found", "expected"), [([0.5], 1), ([1.5, 9.0], 1), ([], None)])
def test_a_quota_cuts_the_affinity_but_never_below_one(
    monkeypatch: pytest.MonkeyPatch, found: list[float], expected: int | None
) -> None:
    monkeypatch.setattr(cpu_count, "_cpu_quotas", lambda *_: found)
    assert cpu_count.usable_cpus() == (expected or len(os.sched_getaffinity(0)))
