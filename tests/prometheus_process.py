"""Runs a real Prometheus with the configuration of deploy/prometheus, against servers here."""

import contextlib
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.client import Client, ClientError
from tests.prometheus_rules import DEPLOYED
from tests.server_process import ServerProcess, free_port

JOB = "simple-diffusion"
SCRAPE_SECONDS = 0.5
START_SECONDS = 30.0

Result = list[tuple[dict[str, str], float]]
"""Of an instant query: the labels and the value of each series."""


def program(name: str) -> str:
    """Where prometheus or promtool is; skips the test where it is not."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here (Debian: apt-get install prometheus)")
    return found


def promtool(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs promtool to its end."""
    return subprocess.run(
        [program("promtool"), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass
class PrometheusProcess:
    """A Prometheus that was started."""

    process: subprocess.Popen[bytes]
    log_file: Path
    port: int

    def ask(self, page: str, **parameters: str) -> Any:
        """The data of a page of the HTTP API; fails if it is an error."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{page}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expression: str) -> Result:
        """Evaluates PromQL now."""
        data = self.ask("query", query=expression)
        assert data["resultType"] == "vector", expression
        return [(each["metric"], float(each["value"][1])) for each in data["result"]]

    def until(self, condition: Callable[[], Any], what: str, timeout_seconds: float = 60) -> Any:
        """Waits until something is so, and returns it."""
        end_seconds = time.monotonic() + timeout_seconds
        while not (found := condition()):
            assert self.process.poll() is None, self.log_file.read_text("utf-8")
            assert time.monotonic() < end_seconds, f"never: {what}"
            time.sleep(0.1)
        return found

    def firing(self, alert: str) -> list[dict[str, str]]:
        """The labels of each alert of a name that fires."""
        return [
            each["labels"]
            for each in self.ask("alerts")["alerts"]
            if each["state"] == "firing" and each["labels"]["alertname"] == alert
        ]

    def _listening(self) -> bool:
        try:
            return bool(self.ask("targets", state="active")["activeTargets"])
        except OSError:
            return False


def configuration() -> dict[str, Any]:
    """What stands in deploy/prometheus/prometheus.yml."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text("utf-8"))
    return loaded


@contextlib.contextmanager
def running_prometheus(
    http_ports: Sequence[int], *, window_seconds: int | None = None
) -> Iterator[PrometheusProcess]:
    """Starts a Prometheus that scrapes servers on this machine; stops it at the end.

    Args:
        http_ports: of the servers.
        window_seconds: how far rules look back, in place of minutes. Alerts then wait for one
            second before they fire.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "rules").mkdir()
        for file in (DEPLOYED / "rules").glob("*.yml"):
            text = file.read_text("utf-8")
            if window_seconds is not None:
                text = re.sub(r"\[\d+m\]", f"[{window_seconds}s]", text)
                text = re.sub(r"(?m)^( +for: )\d+[ms]$", r"\g<1>1s", text)
            (directory / "rules" / file.name).write_text(text, "utf-8")
        (directory / "prometheus.yml").write_text(yaml.safe_dump(_here(http_ports)), "utf-8")
        with _started(directory) as prometheus:
            prometheus.until(prometheus._listening, "a Prometheus that answers", START_SECONDS)
            yield prometheus


def _here(http_ports: Sequence[int]) -> dict[str, Any]:
    """The deployed configuration with other targets and intervals."""
    deployed = configuration()
    every = f"{int(1000 * SCRAPE_SECONDS)}ms"
    [job] = [job for job in deployed["scrape_configs"] if job["job_name"] == JOB]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in http_ports]}]
    deployed["global"] |= {"scrape_interval": every, "evaluation_interval": every}
    deployed["global"]["scrape_timeout"] = every
    return {**deployed, "scrape_configs": [job]}


@contextlib.contextmanager
def _started(directory: Path) -> Iterator[PrometheusProcess]:
    port, log_file = free_port(), directory / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield PrometheusProcess(process, log_file, port)
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def _load(server: ServerProcess) -> Iterator[None]:
    """Requests of every kind, until the end."""
    over = threading.Event()

    def run() -> None:
        with Client(server.target, retry=None) as client:
            for number in itertools.count():
                if over.is_set():
                    return
                client.generate(number % 10, 1 + number % 7, num_steps=5)
                with contextlib.suppress(ClientError):
                    client.generate(10)
                events = client.stream(number % 10, 4, num_steps=20, preview_every=1)
                next(events)
                if number % 2:
                    events.close()
                else:
                    list(events)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")  # the load must be over before others count what they send
def prometheus_under_load(mnist_server: ServerProcess) -> Iterator[PrometheusProcess]:
    """A Prometheus that has scraped a server under load for a while, and goes on."""
    with running_prometheus([mnist_server.http_port]) as prometheus, _load(mnist_server):
        scraped = 'count_over_time(up{job="simple-diffusion"}[30s]) > 12'
        prometheus.until(lambda: prometheus.query(scraped), "a dozen scrapes")
        yield prometheus
