"""Precision, recall, density and coverage: which part of one cloud of features lies in the other.

A cloud's manifold is estimated by balls, one around each point, whose radius is the distance to its
k-th nearest neighbour in the same cloud. Precision and recall: Kynkaanniemi et al. 2019,
"Improved Precision and Recall Metric for Assessing Generative Models", arXiv:1904.06991, Eq. 1-2.
Density and coverage, which suffer less from outliers: Naeem et al. 2020, "Reliable Fidelity and
Diversity Metrics for Generative Models", arXiv:2002.09797, Eq. 5-6.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.checks import check_features, check_same_width
from training.config import require

_DISTANCES_AT_ONCE = 4_000_000
"""Entries of one block of the distance matrix: 32 MB."""
_ZERO = 1e-12
"""Squared distances below this, relative to the squared norms, are what rounding leaves of 0."""
_RIM = 1e-9
"""Relative to a squared radius: points so near to the rim are on it, and that is outside."""


@dataclass(frozen=True)
class Manifold:
    """How two clouds overlap.

    Attributes:
        precision: share of generated points that lie in some real point's ball; 0 .. 1.
        recall: share of real points that lie in some generated point's ball; 0 .. 1.
        density: number of real balls that a generated point lies in, on average, divided by k.
            About 1 for equal distributions; above 1 where samples crowd among dense real points.
        coverage: share of real points with a generated point in their ball; 0 .. 1. For equal
            distributions and sizes about 1 - 2^-k.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(
    real: NDArray[np.floating], generated: NDArray[np.floating], k: int = 5
) -> Manifold:
    """Precision, recall, density and coverage of ``generated`` against ``real``.

    All four depend on N and M: compare at equal sizes only. A point on the rim of a ball is outside
    it, as in the reference implementation of density and coverage, so that a cloud has density 1
    against itself; a ball of radius 0, around a point with k copies, is empty.

    Args:
        real: [N, D] finite features, N > k.
        generated: [M, D] finite features, M > k.
        k: neighbours that make a ball, at least 1.

    Raises:
        ValueError: arguments are not as above.
    """
    require(k >= 1, "k", k, "at least 1")
    check_features("real", real, k + 1)
    check_features("generated", generated, k + 1)
    check_same_width("real", real, "generated", generated)
    # Distances do not change, but |x|^2 does, and with it what cancels in |x|^2 + |y|^2 - 2 x.y.
    centre = np.mean(real, axis=0, dtype=np.float64)
    real, generated = real - centre, generated - centre
    real_radii, generated_radii = _squared_radii(real, k), _squared_radii(generated, k)
    precise = np.zeros(len(generated), np.bool_)
    recalled, covered, memberships = 0, 0, 0
    for rows in _blocks(len(real), len(generated)):
        distances = _squared_distances(real[rows], generated)
        in_real_ball = distances < real_radii[rows, None]
        precise |= in_real_ball.any(axis=0)
        memberships += int(np.count_nonzero(in_real_ball))
        covered += int(np.count_nonzero(in_real_ball.any(axis=1)))
        recalled += int(np.count_nonzero((distances < generated_radii).any(axis=1)))
    return Manifold(
        precision=float(precise.mean()),
        recall=recalled / len(real),
        density=memberships / (k * len(generated)),
        coverage=covered / len(real),
    )


def on_unit_sphere(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Features divided by their lengths, as manifold_metrics should get those of a classifier.

    What a classifier does not recognise has short features, of any direction. They lie amid the
    clusters of the classes, inside the large balls of stray real points. Measured with a LeNet on
    MNIST (N = 2,000; on the sphere 1,500): uniform noise has precision 1.00 and density 2.14 among
    features as they are, 0.22 and 0.05 on the sphere; test images 0.95 and 1.01, 0.91 and 1.02.

    Args:
        features: [N, D]; a row of zeros stays one.

    Returns:
        float64 [N, D].
    """
    vectors = np.asarray(features, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1)
    return unit


def _squared_radii(points: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Squared distance of each point to its k-th nearest neighbour, less _RIM: float64 [N].

    A point's distance rounds differently from block to block; so a point on the rim stays outside.
    """
    radii = np.empty(len(points))
    for rows in _blocks(len(points), len(points)):
        distances = _squared_distances(points[rows], points)
        distances.partition(k, axis=1)  # in place 0 comes the point itself
        radii[rows] = distances[:, k]
    return radii * (1 - _RIM)


def _squared_distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """|x|^2 + |y|^2 - 2 x.y, and 0 where that leaves rounding errors only: float64 [N, M].

    Float64, as the sum cancels: in float32 what is left of neighbours has 2 or 3 right digits.
    """
    norms_a, norms_b = np.einsum("nd,nd->n", a, a), np.einsum("nd,nd->n", b, b)
    distances: NDArray[np.float64] = (-2 * a) @ b.T
    distances += norms_a[:, None]
    distances += norms_b
    distances[distances < _ZERO * (norms_a.max() + norms_b.max())] = 0
    return distances


def _blocks(rows: int, columns: int) -> list[slice]:
    """Slices of rows, such that rows times columns stays within what is computed at once."""
    height = max(1, _DISTANCES_AT_ONCE // columns)
    return [slice(start, start + height) for start in range(0, rows, height)]
