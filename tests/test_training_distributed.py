"""DistributedDataParallel: two processes compute what one computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_training import TRAIN_STEPS, read_log, tiny_flags
from training.checkpoint import load_checkpoint
from training.train import main

LAST = f"checkpoint-{TRAIN_STEPS:08d}.safetensors"


def torchrun(root: Path, flags: list[str]) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine's CPU, joined by gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["--local-addr", "localhost", "-m", "training.train", *flags]
    return subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)  # three interpreters import PyTorch, on a machine that may be busy
def test_two_processes_have_the_loss_curve_of_one(repository: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(tiny_flags(one)) == 0
    completed = torchrun(repository, tiny_flags(two))
    assert completed.returncode == 0, completed.stderr

    # Equal but for the order in which float32 gradients are summed.
    log, log_of_one = read_log(two), read_log(one)
    assert [line["train_step"] for line in log] == list(range(1, TRAIN_STEPS + 1))
    losses, losses_of_one = ([line["loss"] for line in lines] for lines in (log, log_of_one))
    assert losses == pytest.approx(losses_of_one, rel=1e-4)
    checkpoint, checkpoint_of_one = load_checkpoint(two / LAST), load_checkpoint(one / LAST)
    for name, value in checkpoint_of_one.ema_state.items():
        torch.testing.assert_close(checkpoint.ema_state[name], value, rtol=1e-2, atol=1e-3)

    assert checkpoint.provenance["processes"] == 2
    assert checkpoint.provenance["images_seen"] == checkpoint_of_one.provenance["images_seen"]
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert completed.stderr.count("training tiny on CPU") == 1  # said by the main process alone
