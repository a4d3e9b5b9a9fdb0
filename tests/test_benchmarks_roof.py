"""The candidates for the machine's peak compute what their FLOP are counted for."""

import numpy as np
import torch

from benchmarks.roof import (
    FLOP_PER_MULTIPLY_ADD,
    convolution_flop,
    fastest_seconds,
    matmul_flop,
    numpy_convolution,
)


def test_the_convolution_in_numpy_is_a_convolution() -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 3, 6, 5), dtype=np.float32)
    weight = rng.standard_normal((4, 3, 3, 3), dtype=np.float32)
    expected = torch.conv2d(torch.from_numpy(image), torch.from_numpy(weight), padding=1).numpy()
    assert np.abs(numpy_convolution(image, weight) - expected).max() < 1e-4


def test_flop_are_two_for_a_multiply_add() -> None:
    assert FLOP_PER_MULTIPLY_ADD == 2
    assert matmul_flop() == 2 * 1536**3
    assert convolution_flop() == 2 * 8 * 28 * 28 * 128 * 128 * 9


def test_the_fastest_call_counts_and_there_are_three_at_least() -> None:
    calls = []
    assert fastest_seconds(lambda: calls.append(1), budget_seconds=0.0) < 1.0
    assert len(calls) == 4, "one more, before, to warm up"
