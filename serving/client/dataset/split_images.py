"""The images of one split in the order of their rows."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.client.dataset.plan import DatasetPlan, SplitName
from serving.images import Pixels

_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True, eq=False)
class SplitImages:
    """Labels and pixels of a split, row by row.

    Attributes:
        name: train or test.
        indices: int64 [rows], the index of each row's image under the seed.
        labels: int64 [rows].
    """

    name: SplitName
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    _pixels: NDArray[np.uint8]

    @classmethod
    def of(cls, plan: DatasetPlan, name: SplitName, pixels: NDArray[np.uint8]) -> "SplitImages":
        """Picks a split out of the pixels of all indices, uint8 [total, H, W, C]."""
        indices = plan.row_order(name)
        return cls(name, indices, plan.labels()[indices], pixels)

    def __len__(self) -> int:
        return len(self.indices)

    def chunks(self) -> Iterator[tuple[slice, Pixels]]:
        """Rows, and their images uint8 [rows, H, W, C], some hundred kilobytes at a time."""
        for start in range(0, len(self), _ROWS_AT_A_TIME):
            rows = slice(start, min(start + _ROWS_AT_A_TIME, len(self)))
            yield rows, self._pixels[self.indices[rows]]

    def sha256(self) -> str:
        """Of the pixels, row by row: the same for every format and every compression."""
        digest = hashlib.sha256()
        for _, pixels in self.chunks():
            digest.update(pixels.tobytes())
        return digest.hexdigest()
