"""What a data set is: which image has which label, and in which row of which split it stands."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "test")
FORMATS = ("idx", "png", "parquet")


@dataclass(frozen=True, slots=True)
class Span:
    """Images of one label with consecutive indices under the seed."""

    label: int
    first_index: int
    count: int


@dataclass(frozen=True, slots=True)
class DatasetPlan:
    """Everything that the files of a data set follow from.

    All images have one seed. The training images come first, label by label, then the test images,
    so no two images share an index, and none shares its noise with another.

    Attributes:
        model: name of the model.
        model_version: of its weights.
        sampler: one of `serving.client.results.SAMPLERS`.
        num_steps: network calls per image, at least 1.
        guidance_scale: 0 .. 20.
        seed: uint64.
        label_names: what each label stands for.
        label_weights: how the labels share a split, one integer each, at least 0.
        train_count: images of the training split, at least 1.
        test_count: images of the test split, at least 0.
        height: rows of an image.
        width: pixels per row.
        channels: 1 (grey) or 3 (RGB).
        formats: what is written, of FORMATS, in that order.
    """

    model: str
    model_version: str
    sampler: str
    num_steps: int
    guidance_scale: float
    seed: int
    label_names: tuple[str, ...]
    label_weights: tuple[int, ...]
    train_count: int
    test_count: int
    height: int
    width: int
    channels: int
    formats: tuple[str, ...]

    @property
    def total(self) -> int:
        """Images of both splits."""
        return self.train_count + self.test_count

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's pixels."""
        return self.height * self.width * self.channels

    def count(self, split: SplitName) -> int:
        """Images of a split."""
        return self.train_count if split == "train" else self.test_count

    def label_counts(self, split: SplitName) -> tuple[int, ...]:
        """Images of each label in a split."""
        return apportion(self.count(split), self.label_weights)

    def labels(self) -> NDArray[np.int64]:
        """The label of each index, [total]."""
        every_label = np.arange(len(self.label_names))
        return np.concatenate([np.repeat(every_label, self.label_counts(name)) for name in SPLITS])

    def row_order(self, split: SplitName) -> NDArray[np.int64]:
        """The index of the image in each row of a split: shuffled, so that any part is mixed.

        Rows are sorted by BLAKE2b of "SEED/INDEX", which no library's version can change.
        """
        first = 0 if split == "train" else self.train_count
        indices = range(first, first + self.count(split))
        return np.array(sorted(indices, key=self._place), dtype=np.int64)

    def _place(self, index: int) -> bytes:
        return hashlib.blake2b(f"{self.seed}/{index}".encode(), digest_size=16).digest()

    def spans(self, drawn: NDArray[np.bool_], longest: int) -> Iterator[Span]:
        """What is still to be drawn, in the order of the indices.

        Args:
            drawn: [total], whether an image is there already.
            longest: images of a span at most, at least 1.
        """
        labels = self.labels()
        start = 0
        while start < self.total:
            end = start + 1
            if not drawn[start]:
                most = min(start + longest, self.total)
                while end < most and labels[end] == labels[start] and not drawn[end]:
                    end += 1
                yield Span(int(labels[start]), start, end - start)
            start = end

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        fields = asdict(self).items()
        return {name: [*value] if isinstance(value, tuple) else value for name, value in fields}


def apportion(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Shares `total` out by the largest remainders; of equal ones the first is served first.

    Args:
        total: at least 0.
        weights: at least 0 each, not all 0.

    Returns:
        Integers whose sum is `total`; each is within 1 of its exact share.
    """
    whole = sum(weights)
    counts = [total * weight // whole for weight in weights]
    remainders = [total * weight % whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda label: (-remainders[label], label))
    for label in by_remainder[: total - sum(counts)]:
        counts[label] += 1
    return tuple(counts)
