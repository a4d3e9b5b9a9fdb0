"""Pixels survive the way into bytes and back, and grids hold every image where it belongs."""

import io

import numpy as np
import pytest
from PIL import Image

from serving.images import (
    channels_last,
    decode_png,
    decode_raw,
    encode_png,
    encode_raw,
    grid,
)


def picture(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_exactly_the_pixels(channels: int) -> None:
    original = picture(5, 7, channels)
    assert np.array_equal(decode_png(encode_png(original)), original)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_is_one_that_others_read(channels: int, mode: str) -> None:
    original = picture(5, 7, channels)
    with Image.open(io.BytesIO(encode_png(original))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", mode, (7, 5))
        assert np.array_equal(np.asarray(image).reshape(5, 7, channels), original)


def test_equal_pixels_give_equal_files() -> None:
    assert encode_png(picture(28, 28, 1)) == encode_png(picture(28, 28, 1))


def test_png_with_two_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        encode_png(picture(4, 4, 2))


@pytest.mark.parametrize("data", [b"", b"GIF89a", encode_png(picture(8, 8, 1))[:40]])
def test_what_is_no_png_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a PNG file"):
        decode_png(data)


def test_raw_bytes_are_row_major_with_channels_last() -> None:
    planes = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    data = encode_raw(channels_last(planes))
    assert data[:4] == bytes([0, 12, 1, 13])
    assert np.array_equal(decode_raw(data, 3, 4, 2).transpose(2, 0, 1), planes)


def test_raw_bytes_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="need 12 bytes: 11"):
        decode_raw(bytes(11), 3, 4, 1)


def test_a_grid_holds_each_image_at_its_place_on_white() -> None:
    images = [picture(4, 3, 1, seed) for seed in range(5)]
    sheet = grid(images, columns=2, margin=1)
    assert sheet.shape == (3 * 5 + 1, 2 * 4 + 1, 1)
    covered = np.zeros(sheet.shape, dtype=bool)
    for position, image in enumerate(images):
        top, left = 1 + 5 * (position // 2), 1 + 4 * (position % 2)
        assert np.array_equal(sheet[top : top + 4, left : left + 3], image)
        covered[top : top + 4, left : left + 3] = True
    assert (sheet[~covered] == 255).all()


@pytest.mark.parametrize(("count", "shape"), [(1, (8, 8)), (4, (14, 14)), (10, (20, 26))])
def test_a_grid_is_about_square_unless_told_otherwise(count: int, shape: tuple[int, int]) -> None:
    assert grid([picture(4, 4, 3)] * count).shape == (*shape, 3)


def test_a_grid_is_not_wider_than_its_images() -> None:
    assert grid([picture(4, 4, 1)] * 2, columns=9, margin=0).shape == (4, 8, 1)


def test_grids_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        grid([])
    with pytest.raises(ValueError, match="one shape"):
        grid([picture(4, 4, 1), picture(4, 5, 1)])
    with pytest.raises(ValueError, match="at least one column"):
        grid([picture(4, 4, 1)], columns=0)
