"""docker-compose.yml as people run it, on a Docker engine: `make compose-test`.

Without Grafana: nothing of it is ours but a dashboard, whose expressions are tried elsewhere.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from serving.client import AsyncClient, Client
from tests.compose_project import BUILD_SECONDS, Project, docker
from tests.ledger import digests
from tests.server_process import ServerProcess, free_port

HEALTHY_SECONDS = 30
ADDED_BYTES = 250e6
SERVICES = ("server", "prometheus")

pytestmark = [
    pytest.mark.compose,
    pytest.mark.timeout(BUILD_SECONDS + 300),
    pytest.mark.usefixtures("docker_engine"),
]


@pytest.fixture(scope="module")
def project(docker_engine: None, request: pytest.FixtureRequest) -> Iterator[Project]:
    """The server and Prometheus, brought up from images that were built here."""
    names = ("GRPC_PORT", "HTTP_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
    made = Project(f"simple-diffusion-{os.getpid()}", {name: str(free_port()) for name in names})
    made.compose("build", "server", timeout_seconds=BUILD_SECONDS)
    made.compose("pull", "--policy", "missing", *SERVICES, timeout_seconds=BUILD_SECONDS)
    try:
        made.up(*SERVICES)
        yield made
        if request.session.testsfailed:
            sys.stderr.write(made.compose("logs", "--no-color"))
    finally:
        made.compose("down", "--volumes", "--timeout", "5")


@pytest.mark.parametrize(
    ("flags", "servers"),
    [
        ((), {"server"}),
        (("--profile", "gpu"), {"server-gpu"}),
        (("--profile", "envoy"), {"envoy", "replica"}),
        (("--profile", "train"), {"train"}),
        (("--profile", "train-gpu"), {"train-gpu"}),
    ],
)
def test_a_profile_is_valid_and_takes_the_place_of_the_server(
    flags: tuple[str, ...], servers: set[str]
) -> None:
    listed = docker("compose", *flags, "config", "--services").split()
    assert set(listed) == servers | {"prometheus", "grafana"}


def test_up_is_healthy_within_half_a_minute(project: Project) -> None:
    project.compose("down", "--volumes", "--timeout", "5")
    assert project.up(*SERVICES) < HEALTHY_SECONDS
    assert project.container("server")["State"]["Health"]["Status"] == "healthy"


def test_the_image_adds_little_to_its_base_and_nothing_of_training(project: Project) -> None:
    [base, image] = json.loads(
        docker("image", "inspect", "python:3.11-slim-bookworm", "simple-diffusion:serving")
    )
    assert image["Size"] - base["Size"] < ADDED_BYTES
    found = project.run_inside(
        "from importlib.util import find_spec\n"
        "for name in ('onnxruntime', 'torch', 'onnx', 'training', 'pip', 'setuptools'):\n"
        "    print(name, find_spec(name) is not None)"
    )
    assert dict(line.split() for line in found.splitlines()) == {
        "onnxruntime": "True",
        "torch": "False", "onnx": "False", "training": "False", "pip": "False",
        "setuptools": "False",
    }  # fmt: skip


def test_the_container_has_no_rights_and_writes_nowhere(project: Project) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in project.run_inside("print(open('/proc/1/status').read())").splitlines()
        if ":\t" in line
    )
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert "0" not in status["Uid"].split()
    assert "0" not in status["Gid"].split()
    # Every folder that there is: each refuses a file, for whatever reason.
    written = project.run_inside(
        "import os\n"
        "for folder, below, _ in os.walk('/'):\n"
        "    below[:] = [n for n in below if f'{folder}/{n}' not in ('//proc', '//sys', '//dev')]\n"
        "    try:\n"
        "        os.open(f'{folder}/file', os.O_CREAT | os.O_WRONLY)\n"
        "        print(folder)\n"
        "    except OSError:\n"
        "        pass"
    )
    assert written == ""


def test_memory_and_processes_are_limited(project: Project) -> None:
    for service in SERVICES:
        limits = project.container(service)["HostConfig"]
        assert 0 < limits["Memory"] <= 2**30
        assert 0 < limits["PidsLimit"] <= 512


def test_the_published_port_gives_the_pixels_that_any_other_server_gives(
    project: Project, mnist_server: ServerProcess
) -> None:
    with Client(project.target) as contained, Client(mnist_server.target) as other:
        asked = {"label": 7, "count": 12, "seed": 3}
        got, wanted = contained.generate(**asked), other.generate(**asked)
    assert digests(got.images) == digests(wanted.images)
    assert len(digests(got.images)) == 12
    assert got.model_version == wanted.model_version


def test_prometheus_sees_the_server_and_what_it_drew(project: Project) -> None:
    project.until_scraped('up{job="simple-diffusion"}', 1)
    drawn = 'sum(diffusion_images_total{label="8"})'
    with Client(project.target) as client:
        client.generate(8, 5, seed=1)
        project.until_scraped(drawn, 5)
        client.generate(8, 2, seed=1)
    project.until_scraped(drawn, 7)


async def test_stop_under_load_loses_nothing_and_up_serves_again(
    project: Project, mnist_server: ServerProcess
) -> None:
    work = [
        [{"label": label, "count": 8, "seed": turn, "num_steps": 20} for turn in range(3)]
        for label in range(8)
    ]

    async def ask(client: AsyncClient, asked: list[dict[str, Any]]) -> list[dict[int, str]]:
        return [digests((await client.generate(**options)).images) for options in asked]

    codes_before = codes(project)
    async with AsyncClient(project.target, timeout_seconds=200, wait_for_ready=True) as client:
        asking = [asyncio.create_task(ask(client, each)) for each in work]
        await asyncio.to_thread(project.until_active, 40)
        await asyncio.to_thread(project.compose, "stop", "server")
        state = project.container("server")["State"]
        assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 0, False)
        assert not all(each.done() for each in asking), "the stop came when all was over"
        await asyncio.to_thread(project.up, *SERVICES)
        got = await asyncio.gather(*asking)
    async with AsyncClient(mnist_server.target) as client:
        assert got == [await ask(client, each) for each in work]
    # What the server began it answered, once: a request that was lost would be asked again.
    ended = codes(project)[len(codes_before) :]
    assert set(ended) <= {"OK", "UNAVAILABLE"}
    assert ended.count("OK") == sum(map(len, work))


def codes(project: Project) -> list[str]:
    """How each Generate ended, from the server's log, those before its last start included."""
    log = project.compose("logs", "--no-color", "--no-log-prefix", "server")
    return re.findall(r"\bmethod=Generate code=(\w+)", log)
