"""The cache of finished images: bounded, the longest unused go first, and nobody can change it."""

import numpy as np
import pytest

from serving.image_cache import ENTRY_BYTES, ImageCache, Key, key_of
from tests.fakes import spec


def key(number: int) -> Key:
    return key_of(spec(seed=number), 0)


def image(value: int = 0) -> np.ndarray:
    return np.full((1, 2, 2), value, dtype=np.uint8)


def test_it_keeps_what_fits_and_lets_the_longest_unused_go() -> None:
    cache = ImageCache(3 * (ENTRY_BYTES + 4))
    for number in range(3):
        cache.put(key(number), image(number))
    assert cache.get(key(0)) is not None
    cache.put(key(3), image(3))
    assert [number for number in range(4) if cache.get(key(number)) is not None] == [0, 2, 3]
    assert cache.size_bytes == 3 * (ENTRY_BYTES + 4)


def test_what_is_larger_than_the_cache_is_not_kept_and_pushes_nothing_out() -> None:
    cache = ImageCache(ENTRY_BYTES + 4)
    cache.put(key(0), image())
    cache.put(key(1), np.zeros((1, 9, 9), dtype=np.uint8))
    assert cache.get(key(0)) is not None
    assert cache.get(key(1)) is None


def test_the_kept_image_is_a_copy_that_cannot_be_written() -> None:
    cache, drawn = ImageCache(10_000), image(7)
    cache.put(key(0), drawn)
    drawn[:] = 0
    kept = cache.get(key(0))
    assert kept is not None
    assert (kept == 7).all()
    with pytest.raises(ValueError, match="read-only"):
        kept[:] = 1


@pytest.mark.parametrize(
    "changes",
    [
        {"label": 4},
        {"seed": 8},
        {"sampler": "ddim"},
        {"num_steps": 5},
        {"guidance_scale": 1.5},
    ],
)
def test_whatever_an_image_depends_on_is_in_its_key(changes: dict[str, object]) -> None:
    assert key_of(spec(**changes), 3) != key_of(spec(), 3)
    assert key_of(spec(), 3) != key_of(spec(), 4)


def test_what_it_does_not_depend_on_is_not() -> None:
    other = spec(count=9, first_index=2, preview_every=1, deadline_seconds=5.0)
    assert key_of(other, 3) == key_of(spec(), 3)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes must be at least 0, got -1"):
        ImageCache(-1)
