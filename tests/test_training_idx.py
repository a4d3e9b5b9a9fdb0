"""IDX files: real ones are read, damaged ones are refused by name."""

import gzip
import re

import numpy as np
import pytest

from tests.tiny_training import SAMPLE
from training import idx

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def test_real_digits_are_read() -> None:
    images = idx.read(SAMPLE / "t10k-images-idx3-ubyte.gz")
    labels = idx.read(SAMPLE / "t10k-labels-idx1-ubyte.gz")
    assert images.shape == (200, 28, 28)
    assert labels.shape == (200,)
    assert images.dtype == labels.dtype == np.uint8
    assert set(labels.tolist()) == set(range(10))
    ink = (images > 127).mean()
    assert 0.05 < ink < 0.3
    assert images[:, 0].mean() < images[:, 14].mean()  # the digit is in the middle


def test_the_header_is_magic_number_and_big_endian_lengths() -> None:
    assert idx.encode(ARRAY)[:16] == bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4])


@pytest.mark.parametrize("shape", [(24,), (2, 3, 4), (6, 4), (0, 28, 28)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_what_is_encoded_decodes_to_the_same(shape: tuple[int, ...], pack: type[bytes]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(idx.decode(pack(idx.encode(array)), "it"), array)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 15, 16, 17, 39])
def test_a_truncated_file_is_refused_by_name(length: int) -> None:
    with pytest.raises(ValueError, match=r"^train-images: "):
        idx.decode(idx.encode(ARRAY)[:length], "train-images")


def test_bytes_beyond_the_end_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("it: header says (2, 3, 4), the file holds 25")):
        idx.decode(idx.encode(ARRAY) + b"\0", "it")


@pytest.mark.parametrize("length", [2, 10, 20, -9, -1])
def test_a_truncated_gzip_is_refused_by_name(length: int) -> None:
    with pytest.raises(ValueError, match=r"^train-images: damaged gzip"):
        idx.decode(gzip.compress(idx.encode(ARRAY))[:length], "train-images")


def test_a_damaged_gzip_is_refused_by_name() -> None:
    content = bytearray(gzip.compress(idx.encode(ARRAY)))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(ValueError, match=r"^train-images: damaged gzip"):
        idx.decode(bytes(content), "train-images")


@pytest.mark.parametrize("start", [b"\0\0\x0d\x01", b"\1\0\x08\x01", b"PK\x03\x04"])
def test_another_format_is_refused(start: bytes) -> None:
    with pytest.raises(ValueError, match="it: not an IDX file of uint8"):
        idx.decode(start + bytes(8), "it")
