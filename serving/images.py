"""Turns pixels into bytes and back: PNG files, raw bytes, grids."""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

_BACKGROUND = 255


def channels_last(pixels: Pixels) -> Pixels:
    """Returns uint8 [H, W, C] for uint8 [C, H, W]."""
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def encode_png(pixels: Pixels) -> bytes:
    """Returns a PNG file for uint8 [H, W, C] with 1 (grey) or 3 (RGB) channels.

    Raises:
        ValueError: for any other number of channels.
    """
    channels = pixels.shape[2]
    if channels not in (1, 3):
        raise ValueError(f"PNG holds 1 or 3 channels, not {channels}")
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_png(data: bytes) -> Pixels:
    """Returns uint8 [H, W, C] for a PNG file as `encode_png` writes it.

    Raises:
        ValueError: if the bytes are no such file.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode not in ("L", "RGB"):
                raise ValueError(f"expected a grey or RGB PNG, found mode {image.mode}")
            pixels = np.array(image, dtype=np.uint8)
    except OSError as error:
        raise ValueError("these bytes are not a PNG file") from error
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def encode_raw(pixels: Pixels) -> bytes:
    """Returns H * W * C bytes, row-major, for uint8 [H, W, C]."""
    return pixels.tobytes()


def decode_raw(data: bytes, height: int, width: int, channels: int) -> Pixels:
    """Returns uint8 [H, W, C] for bytes as `encode_raw` writes them.

    Raises:
        ValueError: if the number of bytes is not H * W * C.
    """
    expected = height * width * channels
    if len(data) != expected:
        raise ValueError(f"{height}x{width}x{channels} pixels need {expected} bytes: {len(data)}")
    return np.frombuffer(data, dtype=np.uint8).reshape(height, width, channels)


def grid(images: list[Pixels], columns: int | None = None, margin: int = 2) -> Pixels:
    """Lays images of one shape out row by row on white.

    Args:
        images: at least one, each uint8 [H, W, C].
        columns: images per row; None makes the grid about square.
        margin: white pixels between images and around them.

    Returns:
        uint8 [rows * (H + margin) + margin, columns * (W + margin) + margin, C]

    Raises:
        ValueError: if there is no image, or their shapes differ, or columns is below 1.
    """
    if not images:
        raise ValueError("a grid needs at least one image")
    if any(image.shape != images[0].shape for image in images):
        raise ValueError("the images of a grid must have one shape")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise ValueError(f"a grid needs at least one column: {columns}")
    columns = min(columns, len(images))
    height, width, channels = images[0].shape
    rows = math.ceil(len(images) / columns)
    shape = (rows * (height + margin) + margin, columns * (width + margin) + margin, channels)
    sheet = np.full(shape, _BACKGROUND, dtype=np.uint8)
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        top = margin + row * (height + margin)
        left = margin + column * (width + margin)
        sheet[top : top + height, left : left + width] = image
    return sheet
