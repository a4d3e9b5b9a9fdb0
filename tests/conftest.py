"""What every test may count on. Fixtures of one module's tests stand in that module's test file."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.compose_project import docker_engine
from tests.fault_figures import figure, patience, pytest_terminal_summary
from tests.prometheus_process import prometheus_under_load
from tests.server_process import MNIST, ServerProcess, running_server

# Fixtures and a hook of every test.
__all__ = [
    "docker_engine",
    "figure",
    "patience",
    "prometheus_under_load",
    "pytest_terminal_summary",
]

# Before anything imports ONNX Runtime: its Linux builds send telemetry unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# A loaded machine is no reason to fail; CI tries the same cases every time.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of promises: `make fault-test` runs all but the short forms of long ones."""
    for item in items:
        if item.path.name.startswith("test_promise_") and "short" not in item.name:
            item.add_marker(pytest.mark.promise)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def mnist_server() -> Iterator[ServerProcess]:
    """A server of the embedded model, for all tests that neither stop nor overload it."""
    with running_server(MNIST, flags=("--provider", "cpu", "--max-lanes", "32")) as server:
        yield server
