"""DistributedDataParallel: several processes, on one machine or more, compute what one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_training import TRAIN_STEPS, read_log, tiny_flags
from training.checkpoint import Checkpoint, load_checkpoint
from training.train import main

LAST = f"checkpoint-{TRAIN_STEPS:08d}.safetensors"

# Several interpreters import PyTorch, on a machine that may be busy.
pytestmark = pytest.mark.timeout(300)


def torchrun(root: Path, options: list[str], flags: list[str]) -> subprocess.Popen[str]:
    """An agent and its processes on this machine's CPU, joined by gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", *options]
    return subprocess.Popen(
        [*command, "--local-addr", "localhost", "-m", "training.train", *flags],
        cwd=root,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*agents: subprocess.Popen[str]) -> list[str]:
    """What each agent, which must succeed, wrote to stderr."""
    try:
        errors = [agent.communicate(timeout=250)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    for agent, text in zip(agents, errors, strict=True):
        assert agent.returncode == 0, text
    return errors


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by this process alone."""
    folder = tmp_path_factory.mktemp("alone")
    assert main(tiny_flags(folder)) == 0
    return folder


def assert_same_run(folder: Path, alone: Path) -> Checkpoint:
    """Equal but for the order in which gradients are summed; returns the last checkpoint."""
    log, log_alone = read_log(folder), read_log(alone)
    assert [line["train_step"] for line in log] == list(range(1, TRAIN_STEPS + 1))
    losses, losses_alone = ([line["loss"] for line in lines] for lines in (log, log_alone))
    assert losses == pytest.approx(losses_alone, rel=1e-4)
    for line, figure in ((0, "initial_loss"), (-1, "validation_eps_mse")):
        assert log[line][figure] == pytest.approx(log_alone[line][figure], rel=1e-4)
    checkpoint, expected_checkpoint = load_checkpoint(folder / LAST), load_checkpoint(alone / LAST)
    for name, value in expected_checkpoint.ema_state.items():
        torch.testing.assert_close(checkpoint.ema_state[name], value, rtol=1e-2, atol=1e-3)
    assert checkpoint.provenance["images_seen"] == expected_checkpoint.provenance["images_seen"]
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    return checkpoint


def test_two_processes_in_micro_batches_have_the_loss_curve_of_one(
    repository: Path, tmp_path: Path, alone: Path
) -> None:
    options = ["--nproc-per-node", "2", "--rdzv-endpoint", "localhost:0"]
    flags = tiny_flags(tmp_path, gradient_accumulation=2)
    [errors] = finish(torchrun(repository, options, flags))
    assert assert_same_run(tmp_path, alone).provenance["processes"] == 2
    assert errors.count("training tiny on CPU") == 1  # said by the main process alone


def test_two_machines_go_on_with_the_run_of_one_process_as_if_nothing_had_happened(
    repository: Path, tmp_path: Path, alone: Path
) -> None:
    assert main(tiny_flags(tmp_path, stop_after=4, sample_every=0)) == 0
    (tmp_path / "samples-00000004.png").unlink()

    options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "it"]
    options += ["--rdzv-endpoint", f"localhost:{free_port()}"]
    flags = tiny_flags(tmp_path, resume=True)
    errors = "".join(finish(*(torchrun(repository, options, flags) for _ in range(2))))
    assert errors.count("training tiny on CPU") == 1  # said by one of them
    assert errors.count(f"resumed from {tmp_path / 'checkpoint-00000004.safetensors'}") == 1

    (tmp_path / "checkpoint-00000004.safetensors").unlink()
    assert assert_same_run(tmp_path, alone).provenance["processes"] == 2
