"""The sinusoidal embedding by its formula, and the vector made of timestep and label."""

import math

import pytest
import torch

from training.embedding import ConditionEmbedding, SinusoidalPositionEmbedding


def sinusoid(t: int, width: int) -> list[float]:
    """[sin | cos] of t * exp(-i * ln(10000) / (half - 1)), in Python's floats."""
    half = width // 2
    beta = math.log(10_000) / (half - 1)
    angles = [t * math.exp(-i * beta) for i in range(half)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


@pytest.mark.parametrize("width", [4, 6, 16, 128])
def test_the_sinusoidal_embedding_is_the_formula(width: int) -> None:
    timesteps = [0, 1, 2, 37, 500, 999]
    actual = SinusoidalPositionEmbedding(width)(torch.tensor(timesteps))
    assert actual.shape == (len(timesteps), width)
    assert actual.dtype == torch.float32
    expected = torch.tensor([sinusoid(t, width) for t in timesteps])
    # An angle of 999 has 6e-5 between one float32 and the next.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1.5e-4)


def test_the_wavelengths_run_from_2_pi_to_20000_pi() -> None:
    inv_freq = SinusoidalPositionEmbedding(128).inv_freq
    assert inv_freq.shape == (64,)
    assert inv_freq[0].item() == 1.0
    assert inv_freq[-1].item() == pytest.approx(1e-4, rel=1e-5)


def test_integer_and_float_timesteps_embed_alike() -> None:
    embedding = SinusoidalPositionEmbedding(16)
    t = torch.tensor([0, 5, 999])
    assert torch.equal(embedding(t), embedding(t.float()))
    assert torch.equal(embedding(t), embedding(t.to(torch.int32)))


@pytest.mark.parametrize("width", [-4, 0, 1, 2, 3, 5, 127])
def test_an_odd_or_too_small_width_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"width is {width}; it must be even and at least 4"):
        SinusoidalPositionEmbedding(width)


def test_inv_freq_is_a_buffer_and_what_forward_reads() -> None:
    embedding = SinusoidalPositionEmbedding(8)
    assert dict(embedding.named_buffers()).keys() == {"inv_freq"}
    assert not list(embedding.parameters())
    embedding.inv_freq.zero_()
    assert embedding(torch.tensor([7])).tolist() == [[0.0] * 4 + [1.0] * 4]


def test_the_condition_depends_on_timestep_label_and_null() -> None:
    torch.manual_seed(0)
    embedding = ConditionEmbedding(num_labels=3, sinusoidal_width=8, width=12)
    t, label = torch.meshgrid(torch.tensor([0, 1, 999]), torch.arange(4), indexing="ij")
    emb = embedding(t.flatten(), label.flatten())
    assert emb.shape == (12, 12)
    distances = torch.cdist(emb, emb) + torch.eye(12)
    assert distances.min() > 1e-2


def test_a_row_of_the_condition_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    embedding = ConditionEmbedding(num_labels=3, sinusoidal_width=8, width=12)
    t, label = torch.tensor([0, 500, 999]), torch.tensor([3, 0, 2])
    together = embedding(t, label)
    for i in range(3):
        torch.testing.assert_close(embedding(t[i : i + 1], label[i : i + 1])[0], together[i])


def test_a_label_above_null_is_refused() -> None:
    embedding = ConditionEmbedding(num_labels=3, sinusoidal_width=8, width=12)
    with pytest.raises(IndexError):
        embedding(torch.tensor([0]), torch.tensor([4]))
