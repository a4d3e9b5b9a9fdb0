"""Finished images by what they are a function of; bounded in bytes, the longest unused go first."""

from collections import OrderedDict

from serving.request import GenerateSpec, Pixels

Key = tuple[int, int, str, int, float, int]
"""label, seed, sampler, num_steps, guidance_scale, index: with the network, all that matters."""

ENTRY_BYTES = 512
"""What an entry costs besides its pixels: the key, the array's own object, the table."""


def key_of(spec: GenerateSpec, index: int) -> Key:
    """The key of image `index` of a request."""
    return (
        spec.label, spec.seed, spec.sampler, spec.num_steps, spec.guidance_scale, index,
    )  # fmt: skip


class ImageCache:
    """Images of one network. Not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` is 0 or more; a cache of 0 keeps nothing."""
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be at least 0, got {max_bytes}")
        self._max_bytes = max_bytes
        self._images: OrderedDict[Key, Pixels] = OrderedDict()
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        """What is in it, at most max_bytes."""
        return self._bytes

    def get(self, key: Key) -> Pixels | None:
        """The image, read-only, if it is here."""
        pixels = self._images.get(key)
        if pixels is not None:
            self._images.move_to_end(key)
        return pixels

    def put(self, key: Key, pixels: Pixels) -> None:
        """Keeps a copy of an image."""
        if key in self._images or _size(pixels) > self._max_bytes:
            return
        kept = pixels.copy()
        kept.flags.writeable = False
        self._images[key] = kept
        self._bytes += _size(kept)
        while self._bytes > self._max_bytes:
            self._bytes -= _size(self._images.popitem(last=False)[1])


def _size(pixels: Pixels) -> int:
    return pixels.nbytes + ENTRY_BYTES
