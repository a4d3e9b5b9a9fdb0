"""Promise: the server needs no rights and calls nobody."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.client import Client
from tests.fault_figures import Record
from tests.server_process import MNIST, environment, free_port

NOBODY = 65534
STRACE = shutil.which("strace")
SETPRIV = shutil.which("setpriv")


def command(port: int, provider: str = "auto") -> list[str]:
    return [
        sys.executable, "-m", "serving", "--model", str(MNIST), "--provider", provider,
        "--max-lanes", "8",
        "--port", str(port), "--http-port", str(free_port()), "--drain-grace-seconds", "0",
    ]  # fmt: skip


def traceable() -> bool:
    """Whether this system lets us trace a process of our own."""
    if STRACE is None:
        return False
    tried = subprocess.run(
        [STRACE, "-f", "-o", os.devnull, "true"], capture_output=True, check=False
    )
    return tried.returncode == 0


needs_strace = pytest.mark.skipif(
    not traceable(), reason="strace is not installed, or may not trace here"
)


def trace(log: Path, *traced: str) -> list[str]:
    """The command that runs another one and writes its calls for a connection into a file."""
    assert STRACE is not None
    return [STRACE, "-f", "-qq", "-e", "trace=connect,sendto", "-o", str(log), *traced]


def outbound(log: Path) -> list[str]:
    calls = log.read_text(errors="replace").splitlines()
    return [line for line in calls if re.search(r"sa_family=AF_INET6?\b", line)]


@needs_strace
def test_the_watch_on_connections_sees_one(tmp_path: Path) -> None:
    program = f"import socket; socket.socket().connect_ex(('127.0.0.1', {free_port()}))"
    log = tmp_path / "calls"
    subprocess.run(trace(log, sys.executable, "-c", program), check=True, timeout=60)
    assert len(outbound(log)) == 1


@needs_strace
@pytest.mark.parametrize("provider", ["auto", "openvino"])
def test_no_connection_to_anywhere_is_tried(tmp_path: Path, figure: Record, provider: str) -> None:
    port, log = free_port(), tmp_path / "calls"
    process = subprocess.Popen(
        trace(log, *command(port, provider)),
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with Client(f"127.0.0.1:{port}") as client:
            client.wait_ready(100)
            assert len(client.generate(3, 2).images) == 2
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert outbound(log) == []
    figure(f"outbound connections tried, --provider {provider}", 0, "0")


@pytest.mark.skipif(SETPRIV is None, reason="setpriv (util-linux) is not installed")
def test_it_serves_without_rights_and_without_writing_a_file(figure: Record) -> None:
    assert SETPRIV is not None
    port = free_port()
    drop = [SETPRIV, "--no-new-privs", "--inh-caps=-all"]
    if os.geteuid() == 0:
        drop += ["--bounding-set=-all"]
        if nobody_may_read():
            drop += [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]

    def write_nothing() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file, wherever it is

    process = subprocess.Popen(
        [*drop, *command(port)],
        cwd="/",
        env={**environment(), "HOME": "/nowhere"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=write_nothing,  # noqa: PLW1509  (no thread of ours runs yet)
    )
    try:
        with Client(f"127.0.0.1:{port}") as client:
            client.wait_ready(60)
            status = Path(f"/proc/{process.pid}/status").read_text("ascii")
            assert len(client.generate(3, 2).images) == 2
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, stderr.decode()
    rights = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(rights["CapEff"], 16) == 0
    user = rights["Uid"].split()[0]
    figure("serves, every write to a file forbidden, as", f"user {user}, no capabilities", "serves")


def nobody_may_read() -> bool:
    """Whether this checkout and its Python can be read by others than their owner."""
    try:
        tried = subprocess.run(
            [sys.executable, "-c", "import serving.images, onnxruntime"],
            env=environment(), user=NOBODY, group=NOBODY, extra_groups=[], cwd="/",
            capture_output=True, check=False,
        )  # fmt: skip
    except PermissionError:
        return False
    return tried.returncode == 0
