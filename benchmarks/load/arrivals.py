"""When requests arrive and what they ask for: decided before the first is sent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]

_BLOCK = 10  # requests; each block holds the kinds of a mixture in their exact shares


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request in a mixture.

    Attributes:
        share: of the requests, in tenths; above 0.
        count: images.
        num_steps: network calls of each image.
    """

    share: float
    count: int
    num_steps: int

    @property
    def rows(self) -> int:
        """Rows of the network."""
        return self.count * self.num_steps

    def __str__(self) -> str:
        return f"{self.count} x {self.num_steps}"


Mixture = tuple[Kind, ...]


def parse_mixture(text: str) -> Mixture:
    """Reads a mixture as in "0.9:1x10,0.1:64x250": share, images, steps.

    Raises:
        ValueError: if it is not of this form, or the shares are not tenths that add up to 1.
    """
    kinds = []
    for part in text.split(","):
        try:
            share, _, asked = part.partition(":")
            count, _, num_steps = asked.partition("x")
            kind = Kind(float(share), int(count), int(num_steps))
        except ValueError:
            raise ValueError(f"mixture: {part!r}; legal: SHARE:IMAGESxSTEPS") from None
        if kind.count < 1 or kind.num_steps < 1:
            raise ValueError(f"mixture: {part!r}; legal: at least 1 image and 1 step")
        kinds.append(kind)
    mixture = tuple(kinds)
    _per_block(mixture)
    return mixture


def mean_rows(mixture: Mixture) -> float:
    """Rows of the network that a request of the mixture takes on average."""
    return sum(kind.share * kind.rows for kind in mixture)


def poisson(rate: float, requests: int, seed: int) -> Seconds:
    """Arrival times of a Poisson process: float64 [requests], ascending, seconds from its start.

    Args:
        rate: requests per second, above 0.
        requests: how many.
        seed: of the intervals; the same seed gives the same times in units of 1 / rate.
    """
    _require_rate(rate)
    intervals: Seconds = np.random.default_rng(seed).exponential(1.0, requests)
    return np.asarray(np.cumsum(intervals) / rate, dtype=np.float64)


def bursts(rate: float, requests: int, size: int) -> Seconds:
    """Arrival times in bursts of `size` at once, evenly spaced: float64 [requests], from 0 on.

    Args:
        rate: requests per second on average, above 0.
        requests: how many.
        size: of each burst, at least 1.
    """
    _require_rate(rate)
    if size < 1:
        raise ValueError(f"burst size is {size}; legal: at least 1")
    return np.asarray((np.arange(requests) // size) * (size / rate), dtype=np.float64)


def kinds_in_order(mixture: Mixture, requests: int, seed: int) -> list[Kind]:
    """What each request asks for. Every ten in a row hold the exact shares, in a random order.

    So the work that is offered does not depend on the luck of a seed: one large request more or
    less would change it by far more than what is measured.
    """
    rng = np.random.default_rng([seed, 1])
    block = _per_block(mixture)
    order: list[Kind] = []
    while len(order) < requests:
        order += [block[i] for i in rng.permutation(_BLOCK)]
    return order[:requests]


def _per_block(mixture: Sequence[Kind]) -> list[Kind]:
    block = [kind for kind in mixture for _ in range(round(kind.share * _BLOCK))]
    exact = all(abs(kind.share * _BLOCK - round(kind.share * _BLOCK)) < 1e-9 for kind in mixture)
    if len(block) != _BLOCK or not exact or any(kind.share <= 0 for kind in mixture):
        shares = ", ".join(f"{kind.share:g}" for kind in mixture)
        raise ValueError(f"mixture: shares {shares}; legal: tenths above 0 that add up to 1")
    return block


def _require_rate(rate: float) -> None:
    if not rate > 0:
        raise ValueError(f"rate is {rate:g}; legal: above 0")
