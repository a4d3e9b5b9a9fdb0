"""What a run costs: FLOP counted by PyTorch, against a count by hand."""

import pytest

from tests.tiny_training import tiny_model_config
from training.config import PRESETS
from training.cost import forward_flop, remaining_seconds, training_flop


def test_a_call_costs_two_flop_per_multiply_add_of_every_layer() -> None:
    fine, coarse = 14 * 14, 7 * 7  # positions; 16 and 32 channels
    multiply_adds = [
        2 * 16 * 16,  # of the embedding
        fine * 9 * (1 * 16 + 16 * 1),  # first and last convolution
        fine * 9 * (16 * 16 + 16 * 16) + 16 * 32,  # the block on the way down, and its FiLM
        coarse * 9 * 16 * 32,  # downsampling
        coarse * 9 * (32 * 32 + 32 * 32) + 16 * 64,  # the block in the middle
        coarse * (32 * 96 + 32 * 32),  # into and out of attention
        2 * coarse * coarse * 32,  # all positions by all, twice
        coarse * 32 * 16,  # before upsampling
        fine * (9 * (32 * 16 + 16 * 16) + 32 * 16) + 16 * 32,  # the block on the way up
    ]
    assert forward_flop(tiny_model_config(image_size=14)) == 2 * sum(multiply_adds)


@pytest.mark.parametrize("preset", PRESETS)
def test_training_costs_three_calls_per_image_seen(preset: str) -> None:
    model = PRESETS[preset].model
    assert training_flop(model, 0) == 0
    assert training_flop(model, 1000) == 3000 * forward_flop(model)


def test_what_is_left_takes_as_long_as_what_is_done() -> None:
    assert remaining_seconds(done=10, left=30, seconds=5.0) == 15.0
    assert remaining_seconds(done=10, left=0, seconds=5.0) == 0.0
