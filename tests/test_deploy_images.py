"""The Dockerfile and docker-compose.yml as they are written; test_deploy_compose.py runs them."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.configuration import ServerConfig

SERVERS = ("server", "server-gpu", "replica")
TRAINING = ("train", "train-gpu")


@pytest.fixture(scope="module")
def services(repository: Path) -> dict[str, dict[str, Any]]:
    composed = yaml.safe_load((repository / "docker-compose.yml").read_text())
    found: dict[str, dict[str, Any]] = composed["services"]
    return found


def stages(repository: Path) -> dict[str, tuple[str, list[str]]]:
    """Name -> (what it is made from, its instructions, continued lines joined)."""
    text = re.sub(r"^#.*\n", "", (repository / "Dockerfile").read_text(), flags=re.MULTILINE)
    found = {}
    for block in re.split(r"^FROM ", text.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
        head, *instructions = [line for line in block.splitlines() if line]
        base, _, name = head.partition(" AS ")
        found[name] = (base, instructions)
    return found


def lineage(repository: Path, name: str) -> list[str]:
    """The instructions of an image, those of the stages that it is made from first."""
    made = stages(repository)
    base, instructions = made[name]
    return [*(lineage(repository, base) if base in made else ()), *instructions]


def seconds(duration: str) -> int:
    """Of a duration such as 75s."""
    return int(duration.removesuffix("s"))


def test_every_stage_comes_from_the_one_slim_image(repository: Path) -> None:
    made = stages(repository)
    assert made.keys() >= {"serving", "serving-gpu", "training"}
    outside = {base for base, _ in made.values() if base not in made}
    assert outside == {"python:3.11-slim-bookworm"}
    [label] = re.findall(r'image\.base\.name="\S+/(\S+)"', " ".join(lineage(repository, "serving")))
    assert {label} == outside


def test_what_is_installed_is_pinned_by_hash_and_named_in_one_file(repository: Path) -> None:
    for _, instructions in stages(repository).values():
        for instruction in instructions:
            if "pip" in instruction and " install " in instruction:
                [name] = re.findall(r" install --require-hashes -r (\S+)", instruction)
                assert (repository / "requirements" / name).is_file()
                assert instruction.count(" install ") == 1


@pytest.mark.parametrize("target", ["serving", "serving-gpu", "training"])
def test_a_change_of_the_code_installs_nothing_anew(repository: Path, target: str) -> None:
    packages = stages(repository)[f"{target}-packages"][1]
    assert [line for line in packages if line.startswith("COPY")] == [
        f"COPY requirements/{target}.txt ."
    ]
    copied = [line for line in lineage(repository, target) if line.startswith("COPY")]
    assert copied[0] == f"COPY --from={target}-packages /opt/venv /opt/venv"


@pytest.mark.parametrize("target", ["serving", "serving-gpu", "training"])
def test_an_image_runs_as_a_number_that_is_not_root(repository: Path, target: str) -> None:
    users = [line for line in lineage(repository, target) if line.startswith("USER ")]
    assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", users[-1])


def test_the_label_is_the_version_of_the_project(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    [version] = re.findall(r'image\.version="(.*?)"', (repository / "Dockerfile").read_text())
    assert version == project["version"]


def test_a_build_is_sent_what_it_copies_and_nothing_else(repository: Path) -> None:
    rules = (repository / ".dockerignore").read_text().splitlines()
    assert next(rule for rule in rules if not rule.startswith("#")) == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        f"{line.split()[1]}/"
        for _, instructions in stages(repository).values()
        for line in instructions
        if line.startswith("COPY ") and "--from" not in line
    }
    assert [path for path in sorted(copied) if not (repository / path.rstrip("/")).exists()] == []
    for path in copied:
        assert path.startswith(tuple(sent)), f"{path} is not sent"
    for folder in sent:
        assert [path for path in copied if path.startswith(folder)], f"{folder} is not copied"


def test_every_service_is_contained(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid"}, name


def test_ports_are_published_on_this_machine_only(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert len(ports) >= 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_images_of_others_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    others = [service["image"] for service in services.values() if "build" not in service]
    assert len(others) == 3
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in others)


def test_what_is_mounted_is_there(repository: Path, services: dict[str, dict[str, Any]]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", ())]
    sources = {mount.split(":")[0] for mount in mounts if mount.startswith("./")}
    assert len(sources) >= 4
    assert [source for source in sources if not (repository / source).is_dir()] == []
    writable = {mount for mount in mounts if mount.startswith("./") and not mount.endswith(":ro")}
    assert writable == {"./models:/app/models"}, "training alone writes, and only there"


def test_a_server_is_given_the_time_that_its_drain_takes(
    services: dict[str, dict[str, Any]],
) -> None:
    defaults = ServerConfig()
    drain = defaults.drain_grace_seconds + defaults.drain_timeout_seconds
    for name in SERVERS:
        assert seconds(services[name]["stop_grace_period"]) >= drain + 5


def test_whatever_server_runs_is_found_under_one_name(
    services: dict[str, dict[str, Any]],
) -> None:
    for name in SERVERS:
        assert services[name]["networks"]["default"]["aliases"] == ["server"]
        assert len(services[name]["profiles"]) == 1
    assert len({services[name]["profiles"][0] for name in SERVERS}) == len(SERVERS)


def test_without_a_profile_the_server_runs_on_the_cpu(
    repository: Path, services: dict[str, dict[str, Any]]
) -> None:
    assert "\nCOMPOSE_PROFILES=cpu\n" in (repository / ".env").read_text()
    assert services["server"]["profiles"] == ["cpu"]
    without = {name for name, service in services.items() if "profiles" not in service}
    assert without == {"prometheus", "grafana"}


def test_grafana_asks_nobody_outside(services: dict[str, dict[str, Any]]) -> None:
    """Each setting that has it fetch something, as Grafana's manual lists them."""
    settings = services["grafana"]["environment"]
    fetches = (
        "ANALYTICS_REPORTING", "ANALYTICS_CHECK_FOR_UPDATES", "ANALYTICS_CHECK_FOR_PLUGIN_UPDATES",
        "NEWS_NEWS_FEED", "PLUGINS_PREINSTALL", "PLUGINS_PUBLIC_KEY_RETRIEVAL",
    )  # fmt: skip
    for name in fetches:
        said = {key: value for key, value in settings.items() if key.startswith(f"GF_{name}")}
        [(key, value)] = said.items()
        assert value == ("true" if key.endswith("_DISABLED") else "false"), key


def test_training_never_starts_by_itself(services: dict[str, dict[str, Any]]) -> None:
    for name in TRAINING:
        assert services[name]["profiles"] == [name]
        assert "restart" not in services[name]
