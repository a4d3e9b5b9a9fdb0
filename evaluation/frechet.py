"""Frechet distance between two clouds of features (Heusel et al. 2017, Eq. 6)."""

import numpy as np
from numpy.typing import NDArray


def frechet_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), of Gaussians fitted to both clouds.

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2),
    which is symmetric, so no complex root can arise.

    Args:
        a: [N, D] features, N > 1.
        b: [M, D] features, M > 1.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(covariance_a)
    root_a = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = np.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    root_trace = np.sqrt(np.clip(product, 0, None)).sum()
    shift = a.mean(0) - b.mean(0)
    trace = np.trace(covariance_a) + np.trace(covariance_b) - 2 * root_trace
    return float(shift @ shift + trace)
