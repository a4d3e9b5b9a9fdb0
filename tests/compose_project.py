"""Runs docker-compose.yml on a Docker engine, under a name and on ports of its own."""

import json
import os
import subprocess
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

import pytest

from tests.server_process import REPOSITORY, Samples, active, parsed_samples

BUILD_SECONDS = 1200
LOAD_SECONDS = 30
SCRAPE_SECONDS = 30


def docker(
    *arguments: str, timeout_seconds: float = 120, variables: dict[str, str] | None = None
) -> str:
    """What `docker ...` prints, which must succeed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COMPOSE_")}
    done = subprocess.run(
        ["docker", *arguments],
        cwd=REPOSITORY,
        env={**kept, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def docker_engine() -> None:
    """Skips what needs a container where none can be run, and says why."""
    for question in (("docker", "info"), ("docker", "compose", "version")):
        try:
            subprocess.run(question, capture_output=True, text=True, timeout=60, check=True)
        except FileNotFoundError:
            pytest.skip("no Docker engine here: docker is not installed")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no Docker engine with compose here: {error.stderr.strip()}")


@dataclass(frozen=True)
class Project:
    """docker-compose.yml under a name and on ports of its own."""

    name: str
    ports: dict[str, str]

    def compose(self, *arguments: str, timeout_seconds: float = 120) -> str:
        command = ("compose", "--project-name", self.name, *arguments)
        return docker(*command, timeout_seconds=timeout_seconds, variables=self.ports)

    def up(self, *services: str) -> float:
        """Brings them up, the images being there; returns the seconds until all were healthy."""
        begin_seconds = time.monotonic()
        self.compose("up", "--detach", "--wait", *services)
        return time.monotonic() - begin_seconds

    def container(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container, running or stopped."""
        [known] = json.loads(
            docker("inspect", self.compose("ps", "--all", "--quiet", service).strip())
        )
        return dict(known)

    def run_inside(self, program: str) -> str:
        """What a program in Python prints that runs in the server's container."""
        return self.compose("exec", "-T", "server", "python", "-c", program)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.ports['GRPC_PORT']}"

    def metrics(self) -> Samples:
        """What the server says of itself."""
        return parsed_samples(_get(f"http://127.0.0.1:{self.ports['HTTP_PORT']}/metrics"))

    def until_active(self, more_than: int) -> None:
        """Waits until the server has so many requests, images in lanes and images that wait."""
        end_seconds = time.monotonic() + LOAD_SECONDS
        while active(self.metrics()) <= more_than:
            assert time.monotonic() < end_seconds, "the load never came"
            time.sleep(0.005)

    def until_scraped(self, expression: str, wanted: float) -> None:
        """Waits until this is the one value that Prometheus has for it."""
        query = urllib.parse.urlencode({"query": expression})
        url = f"http://127.0.0.1:{self.ports['PROMETHEUS_PORT']}/api/v1/query?{query}"
        end_seconds = time.monotonic() + SCRAPE_SECONDS
        values: list[float] = []
        while values != [wanted]:
            assert time.monotonic() < end_seconds, f"{expression} is {values}, not {wanted}"
            time.sleep(0.2)
            values = [float(each["value"][1]) for each in json.loads(_get(url))["data"]["result"]]


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())
