"""What every test may count on. Fixtures of one module's tests stand in that module's test file."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fault_figures import figure, pytest_terminal_summary
from tests.server_process import ServerProcess, running_server

__all__ = ["figure", "pytest_terminal_summary"]  # a fixture and a hook of every test

# Before anything imports ONNX Runtime: its Linux builds send telemetry unless told not to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# A loaded machine is no reason to fail; CI tries the same cases every time.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("project")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def mnist_server(repository: Path) -> Iterator[ServerProcess]:
    """A server of the embedded model, for all tests that neither stop nor overload it."""
    with running_server(repository / "models" / "mnist") as server:
        yield server
