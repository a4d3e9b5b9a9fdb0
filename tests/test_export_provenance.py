"""Where weights came from, without a word on the machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.provenance import describe
from tests.tiny_export import random_checkpoint, small_graphs, small_model
from training.source_code import git_state

# The first test that needs the graphs exports them, which a busy machine takes a while for.
pytestmark = pytest.mark.timeout(400)


PATHS = ("data_dir", "output", "initialize_from")


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    paths = {name: Path("/somewhere", name) for name in PATHS}
    checkpoint = random_checkpoint(**paths)
    return describe(checkpoint, "ab" * 32, small_model(), small_graphs())


def test_it_names_data_configuration_and_run(described: dict[str, Any]) -> None:
    assert described["dataset_md5"] == {"train-images-idx3-ubyte": "0" * 32}
    assert described["train_step"] == described["train_steps_total"] == 10
    assert described["seed"] == 0
    assert described["wall_seconds"] == 1.5
    assert described["placement"] == "CPU, fp32, contiguous"
    assert described["checkpoint_sha256"] == "ab" * 32
    assert described["export_code"] == git_state()
    assert described["config"]["model"]["widths"] == [16, 32]
    assert described["config"]["learning_rate"] == 1.5e-3


def test_it_holds_no_local_path(described: dict[str, Any]) -> None:
    assert "somewhere" not in json.dumps(described)
    assert not described["config"].keys() & set(PATHS)


def test_parameters_and_multiply_adds_are_those_of_the_network(described: dict[str, Any]) -> None:
    assert described["parameters"] == sum(p.numel() for p in small_model().parameters())
    cost = described["multiply_adds_per_image_and_call"]
    assert cost["embedding.onnx"] == 2 * 16 * 16
    fine, coarse = 14 * 14, 7 * 7  # positions; 16 and 32 channels
    assert cost["unet.onnx"] == sum(
        [
            fine * 9 * (1 * 16 + 16 * 1),  # first and last convolution
            fine * 9 * (16 * 16 + 16 * 16) + 16 * 32,  # the block on the way down, and its FiLM
            coarse * 9 * 16 * 32,  # downsampling
            coarse * 9 * (32 * 32 + 32 * 32) + 16 * 64,  # the block in the middle
            coarse * (32 * 96 + 32 * 32),  # into and out of attention
            2 * coarse * coarse * 32,  # all positions by all, twice
            coarse * 32 * 16,  # before upsampling
            fine * (9 * (32 * 16 + 16 * 16) + 32 * 16) + 16 * 32,  # the block on the way up
        ]
    )
