"""Kernel distance between two clouds of features (Binkowski et al. 2018).

"Demystifying MMD GANs", arXiv:1801.01401, section 4: known as KID where Inception makes the
features. Unlike the Frechet distance its estimate is unbiased, so that small samples may be
compared with large ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.checks import check_features, check_same_width
from training.config import require


@dataclass(frozen=True)
class KernelDistance:
    """Of estimates on random subsets.

    Attributes:
        mean: of the estimates of squared MMD. Unbiased, so below 0 now and then for equal clouds.
        std: of the estimates, without Bessel's correction; the spread of one subset, not of `mean`.
    """

    mean: float
    std: float


def kernel_distance(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Squared MMD between random subsets of two clouds of features, in float64.

    Args:
        a: [N, D] finite features.
        b: [M, D] finite features.
        num_subsets: estimates, at least 1.
        subset_size: points of each cloud in an estimate, drawn without replacement;
            2 .. min(N, M).
        seed: of the subsets, at least 0.

    Raises:
        ValueError: arguments are not as above.
    """
    check_features("a", a, 2)
    check_features("b", b, 2)
    check_same_width("a", a, "b", b)
    fewest = min(len(a), len(b))
    require(num_subsets >= 1, "num_subsets", num_subsets, "at least 1")
    require(2 <= subset_size <= fewest, "subset_size", subset_size, f"2 .. {fewest}")
    require(seed >= 0, "seed", seed, "at least 0")
    random = np.random.default_rng(seed)
    estimates = [
        squared_mmd(
            a[random.choice(len(a), subset_size, replace=False)],
            b[random.choice(len(b), subset_size, replace=False)],
        )
        for _ in range(num_subsets)
    ]
    return KernelDistance(float(np.mean(estimates)), float(np.std(estimates)))


def squared_mmd(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Unbiased estimate of squared maximum mean discrepancy (Gretton et al. 2012, Eq. 3).

    The kernel is k(x, y) = (x.y / D + 1)^3 (Binkowski et al. 2018, section 4).

    Args:
        a: [N, D] features, N > 1.
        b: [M, D] features, M > 1.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return _mean_between_different(x) + _mean_between_different(y) - 2 * float(_kernel(x, y).mean())


def _mean_between_different(points: NDArray[np.float64]) -> float:
    """Mean kernel over pairs of different points: without the diagonal, which makes it unbiased."""
    kernel = _kernel(points, points)
    n = len(points)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    base = a @ b.T
    base /= a.shape[1]
    base += 1
    return base * base * base  # ten times as fast as base**3
