"""Runs `python -m serving` as a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).resolve().parent.parent
MNIST = REPOSITORY / "models" / "mnist"
START_SECONDS = 60.0

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def sample(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """The key of one sample in Samples."""
    return name, frozenset(labels.items())


def parsed_samples(page: str) -> Samples:
    """Every sample of a /metrics page."""
    return {
        sample(each.name, **each.labels): each.value
        for family in text_string_to_metric_families(page)
        for each in family.samples
    }


def environment(**variables: str) -> dict[str, str]:
    """This process' environment, without settings for servers, with the packages importable."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith("SIMPLE_DIFFUSION_")
    }
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "protos")])
    return {**kept, "PYTHONPATH": paths, "ORT_DISABLE_TELEMETRY": "1", **variables}


@dataclass
class ServerProcess:
    """A server that was started."""

    process: subprocess.Popen[bytes]
    log_file: Path
    port: int
    http_port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def get(self, path: str) -> tuple[int, str]:
        """The status and the text of a page of the HTTP side."""
        try:
            url = f"http://127.0.0.1:{self.http_port}{path}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self) -> Samples:
        """Every sample, by its name and its labels."""
        return parsed_samples(self.get("/metrics")[1])

    def metric(self, name: str, **labels: str) -> float:
        """One sample; 0 for one that nothing has touched yet."""
        return self.metrics().get(sample(name, **labels), 0.0)

    def finished(self, method: str, code: str) -> float:
        """How many requests of a method ended with a status."""
        return self.metric("diffusion_requests_finished_total", method=method, code=code)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self, timeout_seconds: float = 30.0) -> int:
        return self.process.wait(timeout_seconds)

    def wait_ready(self) -> None:
        """Waits until it is ready, which it must become."""
        end_seconds = time.monotonic() + START_SECONDS
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > end_seconds:
                raise AssertionError(f"no server: {self.log}")
            time.sleep(0.02)

    def _ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False  # not even listening

    def until(self, condition: Callable[[Samples], object], timeout_seconds: float = 20) -> Samples:
        """Waits until the metrics are so; returns them."""
        end_seconds = time.monotonic() + timeout_seconds
        while not condition(samples := self.metrics()):
            assert time.monotonic() < end_seconds, f"it never came true: {summary(samples)}"
            time.sleep(0.005)
        return samples

    def until_idle(self, timeout_seconds: float = 20) -> Samples:
        """Waits until nothing is active; returns the metrics."""
        return self.until(lambda samples: active(samples) == 0, timeout_seconds)


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all samples of a name that have these labels and any others."""
    wanted = labels.items()
    return sum(value for (each, has), value in samples.items() if each == name and wanted <= has)


def active(samples: Samples) -> float:
    """Requests without a status, lanes in use and images that wait."""
    return (
        total(samples, "diffusion_requests_started_total")
        - total(samples, "diffusion_requests_finished_total")
        + total(samples, "diffusion_lanes_in_use")
        + total(samples, "diffusion_images_waiting")
    )


def summary(samples: Samples) -> dict[str, float]:
    """The samples that say what a server is doing, for a message."""
    names = {name for name, _ in samples if name.startswith("diffusion_")}
    wordy = ("_bucket", "_sum", "_count", "_info")
    return {name: total(samples, name) for name in sorted(names) if not name.endswith(wordy)}


def counters(before: Samples, after: Samples) -> Samples:
    """What the server counted in between: every counter that has changed, and by how much."""
    changed = {key: value - before.get(key, 0.0) for key, value in after.items()}
    return {
        key: value
        for key, value in changed.items()
        if value and key[0].startswith(("diffusion_", "grpc_")) and key[0].endswith("_total")
    }


@contextlib.contextmanager
def started_server(
    *models: Path,
    flags: tuple[str, ...] = (),
    variables: dict[str, str] | None = None,
    program: tuple[str, ...] = ("-m", "serving"),
    port: int | None = None,
    http_port: int | None = None,
) -> Iterator[ServerProcess]:
    """Starts a server, does not wait for it, and kills it at the end. Its ports are free ones,
    unless they are given.
    """
    port, http_port = port or free_port(), http_port or free_port()
    command = [sys.executable, "-W", "error", *program]
    for model in models:
        command += ["--model", str(model)]
    command += ["--port", str(port), "--http-port", str(http_port)]
    command += ["--drain-grace-seconds", "0", *flags]
    with tempfile.TemporaryDirectory() as directory:
        log_file = Path(directory) / "log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment(**(variables or {}))
            )
        try:
            yield ServerProcess(process, log_file, port, http_port)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running_server(
    *models: Path,
    flags: tuple[str, ...] = (),
    variables: dict[str, str] | None = None,
    program: tuple[str, ...] = ("-m", "serving"),
) -> Iterator[ServerProcess]:
    """Starts a server on free ports, waits until it is ready, and kills it at the end."""
    with started_server(*models, flags=flags, variables=variables, program=program) as server:
        server.wait_ready()
        yield server


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def run_server(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a server that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "serving", *arguments],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        env=environment(),
        check=False,
    )
