"""Noise: the published Philox vectors, pinned values, the normal distribution, independence."""

import hashlib
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from diffusion.noise import INITIAL_STEP, _normal, normal_table, philox4x32_10, standard_normal

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def rows(seed: npt.ArrayLike, index: npt.ArrayLike, step: npt.ArrayLike, size: int) -> Floats:
    lanes = np.broadcast_arrays(np.asarray(seed, dtype=np.uint64), index, step)
    seeds, indices, steps = (np.atleast_1d(lane) for lane in lanes)
    return standard_normal(seeds, indices, steps, size)


def sha256(*arrays: Floats) -> str:
    return hashlib.sha256(b"".join(a.astype("<f4").tobytes() for a in arrays)).hexdigest()


# --- Bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123, tests/kat_vectors, the lines "philox4x32 10"
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter: str, key: str, words: str) -> None:
    counter_words, key_words, expected = (
        np.array([int(word, 16) for word in text.split()], dtype=np.uint32)
        for text in (counter, key, words)
    )
    before = counter_words.copy()
    np.testing.assert_array_equal(philox4x32_10(counter_words, key_words), expected)
    np.testing.assert_array_equal(counter_words, before)
    several = np.repeat(counter_words[:, None], 5, axis=1)
    together = philox4x32_10(several, key_words[:, None])
    np.testing.assert_array_equal(together, np.repeat(expected[:, None], 5, axis=1))


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in plain integers, written from the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second & 0xFFFFFFFF,
            (first >> 32) ^ c3 ^ k1,
            first & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def test_noise_is_what_its_definition_says() -> None:
    seed, index, step = 0xFEDCBA9876543210, 2**31 + 7, 12345
    inverse = NormalDist().inv_cdf
    expected = []
    for block in range(6):
        for word in scalar_philox([block, step, index, 0], [seed & 0xFFFFFFFF, seed >> 32]):
            z = -inverse(((word & 0x7FFFFFFF) + 0.5) / 2**32)
            expected.append(-z if word >> 31 else z)
    np.testing.assert_allclose(rows(seed, index, step, 22)[0], expected[:22], rtol=0, atol=1e-6)


# --- Golden values: a change here changes every image ever drawn ----------------------------------


def test_table_is_pinned() -> None:
    value, slope = normal_table()
    assert value.dtype == slope.dtype == np.float32
    assert value.shape == slope.shape == (8193,)
    assert sha256(value, slope) == (
        "00860f05db355c6b52b5c4fc2e9aa6d525e87f64c82e9f67e8208fcf451c8211"
    )


def test_noise_is_pinned() -> None:
    z = rows(
        [0, 1, 2**64 - 1, 0x0123456789ABCDEF], [0, 3, 2**32 - 1, 15], [2**32 - 1, 0, 999, 7], 785
    )
    assert z.shape == (4, 785)
    assert z.dtype == np.float32
    written_out = [
        ["-0x1.8995140000000p-4", "0x1.90ce600000000p+0", "-0x1.6e4dd80000000p+0"],
        ["-0x1.c44d5e0000000p+0", "-0x1.6727960000000p-2", "-0x1.820b980000000p-3"],
        ["0x1.3ddeac0000000p-4", "-0x1.adc3760000000p+0", "0x1.584eba0000000p-3"],
        ["-0x1.4f6f2e0000000p-1", "-0x1.62c92a0000000p+0", "-0x1.f7a7140000000p-4"],
    ]
    assert [[float(x).hex() for x in row[:3]] for row in z] == written_out
    assert sha256(z) == "4d9e4f5e80735e4d983b330b7c773f6bfaae26654fc47da5720678373dc32b3c"
    assert INITIAL_STEP == 2**32 - 1


# --- The normal distribution ----------------------------------------------------------------------


def test_inversion_is_exact_to_1e_6_over_the_whole_range() -> None:
    # Every m below 2^12, then some forty places in each of the segments up to the middle.
    places = np.concatenate([np.arange(2**12), 2.0 ** np.linspace(12, 31, 200_000) - 1.0])
    m = np.unique(places.astype(np.uint32))
    z = _normal(m)
    # Independent of the table: one Newton step on the distribution function, (Q(z) - p) / phi(z).
    error = [
        (0.5 * math.erfc(x / math.sqrt(2.0)) - (k + 0.5) / 2**32)
        / (math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi))
        for k, x in zip(m.tolist(), z.tolist(), strict=True)
    ]
    assert np.abs(error).max() < 1e-6  # measured with 2 million places: 9.2e-7, at |z| = 1.14


def test_tail_goes_on_beyond_6() -> None:
    far = _normal(np.array([0, 1, 2**31, 2**31 + 1], dtype=np.uint32))
    assert far.tolist() == pytest.approx([6.33796, 6.16643, -6.33796, -6.16643], abs=1e-5)
    middle = _normal(np.array([2**31 - 1, 2**32 - 1], dtype=np.uint32))
    assert middle.tolist() == [0.0, 0.0]


def test_inversion_is_monotone_across_segments_and_odd() -> None:
    around = np.array([(256 + j) << e for e in range(23) for j in range(256)], dtype=np.int64)
    m = np.unique(np.concatenate([around - 1, around, around + 1, np.arange(1024)]))
    m = m[m < 2**31].astype(np.uint32)
    z = _normal(m)
    assert np.diff(z).max() < 5e-7  # an ulp where segments meet: their slopes are rounded
    np.testing.assert_array_equal(_normal(m | np.uint32(2**31)), -z)


@pytest.fixture(scope="module")
def million() -> npt.NDArray[np.float64]:
    """2^20 numbers, as a request for images would draw them."""
    z: npt.NDArray[np.float64] = rows(11, np.arange(1024), 3, 1024).astype(np.float64)
    return z


def test_moments(million: npt.NDArray[np.float64]) -> None:
    n = million.size
    assert abs(million.mean()) < 4.0 / math.sqrt(n)
    assert abs((million**2).mean() - 1.0) < 4.0 * math.sqrt(2.0 / n)
    assert abs((million**3).mean()) < 4.0 * math.sqrt(15.0 / n)
    assert abs((million**4).mean() - 3.0) < 4.0 * math.sqrt(96.0 / n)


def test_kolmogorov_smirnov(million: npt.NDArray[np.float64]) -> None:
    z = np.sort(million.ravel())[::8]  # every eighth order statistic: the rank is known
    n = million.size
    cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in z.tolist()])
    rank = np.arange(0, n, 8) / n
    assert np.abs(cdf - rank).max() + 8.0 / n < 1.95 / math.sqrt(n)  # p = 0.001


def test_tails_have_their_share(million: npt.NDArray[np.float64]) -> None:
    for bound in (2.0, 3.0, 4.0):
        share = math.erfc(bound / math.sqrt(2.0)) * million.size
        assert abs(np.count_nonzero(np.abs(million) > bound) - share) < 4.0 * math.sqrt(share)


# --- Independence ---------------------------------------------------------------------------------


def correlation(a: Floats, b: Floats) -> float:
    return float(np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1])


@pytest.mark.parametrize(
    "neighbours",
    [
        lambda k: (k, 5, 5),
        lambda k: (5, k, 5),
        lambda k: (5, 5, k),
        lambda k: (k.astype(np.uint64) << np.uint64(32), 5, 5),
        lambda k: (k, k, k),
    ],
    ids=["seed", "index", "step", "seed_high_word", "all_at_once"],
)
def test_neighbours_are_independent(neighbours: Callable[[Ints], tuple[Any, Any, Any]]) -> None:
    z = rows(*neighbours(np.arange(512)), 784)
    limit = 4.5 / math.sqrt(511 * 784)
    assert abs(correlation(z[1:], z[:-1])) < limit
    assert abs(correlation(z[1:] ** 2, z[:-1] ** 2)) < limit
    assert abs(correlation(z[1:, 1:], z[:-1, :-1])) < limit


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 28])
def test_elements_of_an_image_are_independent(lag: int) -> None:
    z = rows(0, np.arange(512), INITIAL_STEP, 784)
    limit = 4.5 / math.sqrt(512 * (784 - lag))
    assert abs(correlation(z[:, lag:], z[:, :-lag])) < limit
    assert abs(correlation(z[:, lag:] ** 2, z[:, :-lag] ** 2)) < limit


def test_seed_index_and_step_are_not_interchangeable() -> None:
    triples = [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1), (1 << 32, 2, 3)]
    assert len({rows(*triple, 8).tobytes() for triple in triples}) == len(triples)


# --- A row is a function of its own (seed, index, step) -------------------------------------------


def test_any_split_of_lanes_gives_equal_rows() -> None:
    rng = np.random.default_rng(0)
    n = 70  # more than are worked on at once
    seed = rng.integers(0, 2**64, n, dtype=np.uint64)
    index, step = rng.integers(0, 2**32, n), rng.integers(0, 1000, n)
    whole = standard_normal(seed, index, step, 785)
    for size in (1, 7, 33):
        parts = [
            standard_normal(seed[i : i + size], index[i : i + size], step[i : i + size], 785)
            for i in range(0, n, size)
        ]
        assert np.concatenate(parts).tobytes() == whole.tobytes()
    order = rng.permutation(n)
    shuffled = standard_normal(seed[order], index[order], step[order], 785)
    assert shuffled.tobytes() == whole[order].tobytes()


def test_equal_lanes_give_equal_rows() -> None:
    z = rows([7, 8, 7], 1, 2, 10)
    assert z[0].tobytes() == z[2].tobytes() != z[1].tobytes()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 783, 784])
def test_a_shorter_row_begins_a_longer_one(size: int) -> None:
    z = rows(3, [0, 1], 2, size)
    assert z.shape == (2, size)
    np.testing.assert_array_equal(z, rows(3, [0, 1], 2, 20_000)[:, :size])


def test_no_lanes_give_no_rows() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert standard_normal(none.astype(np.uint64), none, none, 784).shape == (0, 784)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, 2**32])
@pytest.mark.parametrize("name", ["index", "step"])
def test_counters_out_of_range_are_refused(name: str, value: int) -> None:
    counters = {"index": np.array([0, 1]), "step": np.array([0, 1])}
    counters[name][1] = value
    with pytest.raises(ValueError, match=rf"{name} must be in 0\.\.4294967295, got {value}"):
        standard_normal(np.zeros(2, dtype=np.uint64), **counters, size=4)


def test_shapes_that_do_not_fit_are_refused() -> None:
    seed, index = np.zeros(2, dtype=np.uint64), np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match=r"seed must have shape \[N\], got \(\)"):
        standard_normal(np.array(0, dtype=np.uint64), index, index, 4)
    with pytest.raises(ValueError, match=r"step must have the shape of seed, \(2,\), got \(1,\)"):
        standard_normal(seed, index, index[:1], 4)
    with pytest.raises(ValueError, match=r"size must be in 0\.\.\d+, got -1"):
        standard_normal(seed, index, index, -1)
