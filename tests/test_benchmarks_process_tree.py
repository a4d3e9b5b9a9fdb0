"""Memory and CPU time of a tree of processes, and what packages take on disk."""

import importlib.metadata
import os
import subprocess
import sys
import threading
import time

import pytest

from benchmarks.installed import installed_bytes
from benchmarks.process_tree import (
    cpu_seconds_of_threads,
    cpu_seconds_of_tree,
    memory_of_tree,
)


def test_the_memory_of_a_child_counts() -> None:
    program = "import sys; held = bytearray(64 << 20); print('ready', flush=True); sys.stdin.read()"
    alone = memory_of_tree(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        both = memory_of_tree(os.getpid())
    finally:
        child.communicate()
    assert both.processes == alone.processes + 1
    assert both.resident_bytes - alone.resident_bytes > 64 << 20
    assert both.proportional_bytes <= both.resident_bytes


def test_the_cpu_time_of_a_child_counts() -> None:
    program = """import sys, time
while time.process_time() < 0.5: pass
print('done', flush=True); sys.stdin.read()"""
    alone = cpu_seconds_of_tree(os.getpid())
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert cpu_seconds_of_tree(os.getpid()) - alone >= 0.45
    finally:
        child.communicate()


def test_the_cpu_time_of_threads_is_told_apart() -> None:
    before = cpu_seconds_of_threads(os.getpid())
    begin_seconds = time.thread_time()
    while time.thread_time() - begin_seconds < 0.3:
        pass
    after = cpu_seconds_of_threads(os.getpid())
    mine = threading.get_native_id()
    assert 0.25 <= after[mine] - before[mine] <= 1.0


def test_a_process_that_is_gone_has_no_memory() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(ProcessLookupError):
        memory_of_tree(child.pid)


def test_what_a_package_needs_counts_with_it() -> None:
    packages = installed_bytes(["simple-diffusion[serving]"])
    assert {"simple-diffusion", "numpy", "onnxruntime", "grpcio"} <= set(packages)
    assert "torch" not in packages
    assert packages["numpy"] > 1e6


def test_a_package_that_is_not_there_is_an_error() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        installed_bytes(["no-such-package-anywhere"])
