"""Nobody who logs waits for whoever reads the log."""

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import log_writing
from serving.client import Client
from serving.log_writing import BackgroundHandler
from tests.fakes import write_tiny_bundle
from tests.server_process import ServerProcess, environment, free_port

LINES = 50


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends of a pipe for reading and writing, as small as a pipe can be."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):  # closed by the test
            os.close(end)


def fill(writer: int) -> int:
    """Fills a pipe; returns with how many bytes."""
    os.set_blocking(writer, False)
    written = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            written += os.write(writer, b"x" * 512)
    os.set_blocking(writer, True)
    return written


def log(handler: BackgroundHandler, text: str) -> None:
    handler.handle(logging.LogRecord("x", logging.INFO, "x.py", 1, text, (), None))


def read_until(reader: int, end: str) -> list[str]:
    """The lines until one holds `end`."""
    content = ""
    while end not in content or not content.endswith("\n"):
        content += os.read(reader, 65536).decode()
    return content.splitlines()


def test_lines_come_in_their_order_and_are_there_after_a_flush(pipe: tuple[int, int]) -> None:
    handler = BackgroundHandler(pipe[1])
    for number in range(LINES):
        log(handler, f"line {number}")
    handler.flush()
    os.set_blocking(pipe[0], False)
    content = os.read(pipe[0], 65536).decode()
    assert content.splitlines() == [f"line {number}" for number in range(LINES)]


def test_lines_that_come_soon_after_others_are_written_together(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writing, "PAUSE_SECONDS", 60.0)
    handler = BackgroundHandler(pipe[1])
    log(handler, "first")
    assert read_until(pipe[0], "first") == ["first"]  # at once
    for number in range(LINES):
        log(handler, f"line {number}")
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)
    begin = time.monotonic()
    handler.flush()
    assert time.monotonic() - begin < log_writing.FLUSH_SECONDS
    content = os.read(pipe[0], 65536).decode()
    assert content.splitlines() == [f"line {number}" for number in range(LINES)]


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_that_nobody_reads_are_bounded_and_their_loss_is_said(
    pipe: tuple[int, int], blocking: bool
) -> None:
    reader, writer = pipe
    filled = fill(writer)
    os.set_blocking(writer, blocking)
    handler = BackgroundHandler(writer, max_lines=10)
    for number in range(LINES):
        log(handler, f"line {number}")
    begin = time.monotonic()
    handler.flush()  # does not wait for ever
    assert time.monotonic() - begin < 10
    os.read(reader, filled)
    *kept, loss = read_until(reader, "lost")
    assert kept == [f"line {number}" for number in range(len(kept))]
    assert 10 <= len(kept) <= 20  # those that wait, and those that the thread had in its hands
    assert loss.startswith(f"{LINES - len(kept)} log lines were lost")


def test_a_reader_that_leaves_and_a_line_that_cannot_be_made_harm_nobody(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = BackgroundHandler(pipe[1])
    handler.handle(logging.LogRecord("x", logging.INFO, "x.py", 1, "%d", ("no number",), None))
    log(handler, "line")
    handler.flush()
    assert read_until(pipe[0], "line") == ["line"]
    os.close(pipe[0])
    log(handler, "to nobody")
    handler.flush()
    assert any(thread.name == "log" for thread in threading.enumerate())


def test_a_server_whose_log_nobody_reads_serves_and_stops(
    pipe: tuple[int, int], tmp_path: Path
) -> None:
    """As under a supervisor that hangs: from its first line on, none can be written."""
    fill(pipe[1])
    port, http_port = free_port(), free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", "--model", str(write_tiny_bundle(tmp_path / "tiny")),
         "--port", str(port), "--http-port", str(http_port), "--provider", "cpu",
         "--drain-grace-seconds", "0"],
        stderr=pipe[1], env=environment(),
    )  # fmt: skip
    server = ServerProcess(process, tmp_path / "none", port, http_port)
    try:
        server.wait_ready()
        with Client(server.target) as client:
            for seed in range(20):
                assert len(client.generate(1, 2, seed=seed).images) == 2
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
    finally:
        process.kill()
        process.wait()
