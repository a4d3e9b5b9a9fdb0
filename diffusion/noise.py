"""Counter-based standard normal noise: a pure function of (seed, image index, step, element).

Bits: Philox4x32-10 (Salmon et al., SC'11, "Parallel Random Numbers: As Easy as 1, 2, 3"). The key
is the seed's (low, high) word, the counter is (block, step, index, 0), and the four words of block
b give elements 4b .. 4b+3 of a row.

Bits to normals: inversion of the normal distribution with geometric segments (Lee, Cheung,
Villasenor, Luk 2009, "Hierarchical Segmentation for Hardware Function Evaluation"). The top bit of
a word is the sign, the other 31 are m, and |z| = -Phi^-1(p) at p = (m + 1/2) / 2^32 in (0, 1/2).
Read as bits, the float32 of m + 1/2 names its own segment: its exponent and the first SEGMENT_BITS
bits of its mantissa count segments that halve in width toward the tail; the rest of the mantissa
is the place within one, where |z| is interpolated linearly.

At run time there are only integer operations and IEEE multiplications and additions, no logarithm
or sine, whose last bit differs between NumPy builds: equal arguments give equal bits everywhere.
The table is built from the standard library at first use, and pinned by a test.
|z| is at most 6.34; the error of the interpolation is below 1e-6.
"""

import functools
import sys
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

UInt32Array = npt.NDArray[np.uint32]
UInt64Array = npt.NDArray[np.uint64]
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

INITIAL_STEP: int = 2**32 - 1
"""The `step` under which x_T itself is drawn; the steps of a plan are 0 .. K-1."""

SEGMENT_BITS = 8
"""Mantissa bits that choose a segment: 2^8 segments per halving of p."""

_OFFSET_BITS = 23 - SEGMENT_BITS
_FIRST_SEGMENT = 126 << SEGMENT_BITS  # the segment bits of float32 1/2, the least m + 1/2
_BLOCKS_AT_ONCE = 4096  # keeps the temporary arrays within a core's cache
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)  # halves of a uint64


def standard_normal(
    seed: UInt64Array, index: Int64Array, step: Int64Array, size: int
) -> Float32Array:
    """Standard normal numbers, one row per lane.

    Row i depends on (seed[i], index[i], step[i]) alone, and a shorter row is the beginning of a
    longer one.

    Args:
        seed: uint64 [N].
        index: int64 [N], number of the image in its request, in 0 .. 2^32 - 1.
        step: int64 [N], position in the plan, or INITIAL_STEP; in 0 .. 2^32 - 1.
        size: numbers per row, in 0 .. 2^34.

    Returns:
        float32 [N, size].

    Raises:
        ValueError: if index, step or size is out of range, or the shapes differ.
    """
    seed, index, step = np.asarray(seed, dtype=np.uint64), np.asarray(index), np.asarray(step)
    if seed.ndim != 1:
        raise ValueError(f"seed must have shape [N], got {seed.shape}")
    _check_counter("index", index, seed.shape)
    _check_counter("step", step, seed.shape)
    if not 0 <= size <= 2**34:
        raise ValueError(f"size must be in 0..{2**34}, got {size}")
    lanes = max(1, _BLOCKS_AT_ONCE // max(1, -(-size // 4)))
    if seed.size <= lanes:
        return _normal(_bits(seed, index, step, size))
    normals = np.empty((seed.size, size), dtype=np.float32)
    for first in range(0, seed.size, lanes):
        part = slice(first, first + lanes)
        normals[part] = _normal(_bits(seed[part], index[part], step[part], size))
    return normals


def _bits(seed: UInt64Array, index: Int64Array, step: Int64Array, size: int) -> UInt32Array:
    """The random words behind each normal, uint32 [N, size]."""
    blocks = -(-size // 4)
    counter = np.zeros((4, seed.size, blocks), dtype=np.uint32)
    counter[0] = np.arange(blocks, dtype=np.uint32)
    counter[1] = step.astype(np.uint32)[:, None]
    counter[2] = index.astype(np.uint32)[:, None]
    key = np.empty((2, seed.size, 1), dtype=np.uint32)
    key[0, :, 0] = seed & np.uint64(0xFFFFFFFF)
    key[1, :, 0] = seed >> np.uint64(32)
    words = philox4x32_10(counter, key)
    # [4, N, blocks] -> [N, 4 * blocks], a block's four words side by side.
    side_by_side = np.ascontiguousarray(words.transpose(1, 2, 0))
    return side_by_side.reshape(seed.size, 4 * blocks)[:, :size]


def _check_counter(name: str, counter: Int64Array, shape: tuple[int, ...]) -> None:
    if counter.shape != shape:
        raise ValueError(f"{name} must have the shape of seed, {shape}, got {counter.shape}")
    if counter.size:
        for value in (int(counter.min()), int(counter.max())):
            if not 0 <= value < 2**32:
                raise ValueError(f"{name} must be in 0..{2**32 - 1}, got {value}")


def philox4x32_10(counter: UInt32Array, key: UInt32Array) -> UInt32Array:
    """Ten rounds of Philox4x32 (Salmon et al. 2011, section 3.3).

    Args:
        counter: uint32 [4, ...].
        key: uint32 [2, ...], broadcast against the counters.

    Returns:
        uint32 [4, ...], the random words.
    """
    # One round, with M = (D2511F53, CD9E8D57):
    #     c0, c1, c2, c3 <- hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)
    # The words that are multiplied, (c0, c2), and those that are only xored, (c1, c3), are one
    # array each, so that a round is three NumPy calls; high and low halves are read in place.
    tail = (1,) * (counter.ndim - 1)
    multiplier = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64).reshape(2, *tail)
    key_step = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint32).reshape(2, *tail)
    multiplied, xored = counter[0::2].copy(), counter[1::2]
    product = np.empty((*multiplied.shape, 1), dtype=np.uint64)
    spare = np.empty_like(product)
    for _ in range(10):
        np.multiply(multiplied, multiplier, out=product[..., 0])
        halves = product.view(np.uint32)[::-1]  # (M1 c2, M0 c0), each as two words
        np.bitwise_xor(halves[..., _HIGH], xored, out=multiplied)
        multiplied ^= key
        xored = halves[..., _LOW]
        product, spare = spare, product  # `xored` still reads this one in the next round
        key = key + key_step  # modulo 2^32
    words = np.empty_like(counter)
    words[0::2], words[1::2] = multiplied, xored
    return words


@functools.cache
def normal_table() -> tuple[Float32Array, Float32Array]:
    """|z| at the start of every segment, and its slope per unit of the remaining mantissa bits.

    Segment number k = 2^SEGMENT_BITS * (e + 1) + j starts at m + 1/2 = 2^e * (1 + j / 2^8), for
    e = -1 .. 30. One more stands for 2^31 itself (p = 1/2), to which the largest m round up.

    Returns:
        (value, slope), read-only float32 [32 * 2^SEGMENT_BITS + 1] each.
    """
    per_octave = 2**SEGMENT_BITS
    starts = [2.0**e * (1.0 + j / per_octave) for e in range(-1, 31) for j in range(per_octave)]
    inverse = NormalDist().inv_cdf
    z = np.array([-inverse(start / 2**32) for start in starts] + [0.0, 0.0])
    value = z[:-1].astype(np.float32)
    slope = (np.diff(z) / 2**_OFFSET_BITS).astype(np.float32)
    value.flags.writeable = slope.flags.writeable = False
    return value, slope


def _normal(bits: UInt32Array) -> Float32Array:
    """Words to normals, element by element: uint32 [...] -> float32 [...]."""
    value, slope = normal_table()
    scaled_p = (bits & np.uint32(0x7FFFFFFF)).astype(np.float32)
    scaled_p += np.float32(0.5)  # 2^32 p = m + 1/2
    pattern = scaled_p.view(np.uint32)
    segment = (pattern >> np.uint32(_OFFSET_BITS)).astype(np.intp)
    segment -= _FIRST_SEGMENT
    pattern &= np.uint32((1 << _OFFSET_BITS) - 1)
    z = slope.take(segment)
    z *= pattern.astype(np.float32)
    z += value.take(segment)  # |z| = value + slope * offset
    signed = z.view(np.uint32)
    signed |= bits & np.uint32(0x80000000)
    return z
