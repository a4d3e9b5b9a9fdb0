"""The IDX file format of MNIST: big-endian header, then raw uint8."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UINT8 = 0x08


def decompress(content: bytes, name: str) -> bytes:
    """The file itself, whether it came gzipped or not.

    Raises:
        ValueError: truncated or damaged gzip; names ``name``.
    """
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{name}: damaged gzip: {error}") from error


def decode(content: bytes, name: str) -> NDArray[np.uint8]:
    """IDX bytes (raw or gzip) to an array with the shape that the header states.

    Raises:
        ValueError: not IDX, not uint8, or the length does not match the header; names ``name``.
    """
    content = decompress(content, name)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UINT8:
        found = content[:4].hex(" ") or "nothing"
        raise ValueError(
            f"{name}: not an IDX file of uint8: it starts with {found}; legal: 00 00 08 and the "
            "number of dimensions"
        )
    start = 4 + 4 * content[3]  # of the data, after one length per dimension
    if len(content) < start:
        raise ValueError(f"{name}: the header is cut short at {len(content)} of {start} bytes")
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    data = np.frombuffer(content, dtype=np.uint8, offset=start)
    if data.size != math.prod(shape):
        raise ValueError(f"{name}: header says {shape}, the file holds {data.size} bytes")
    return data.reshape(shape)


def encode(array: NDArray[np.uint8]) -> bytes:
    """Inverse of :func:`decode`."""
    header = bytes([0, 0, UINT8, array.ndim])
    return header + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def read(path: Path) -> NDArray[np.uint8]:
    """Read and :func:`decode` one file."""
    return decode(path.read_bytes(), path.name)
