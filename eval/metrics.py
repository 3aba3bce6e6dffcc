"""Distances that only the evaluation measures: between angles, between vectors, and between sets of features."""

import numpy as np
from numpy.typing import NDArray


def angle_difference(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Absolute difference of angles in degrees, in [0, 180]."""
    delta = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return np.abs((delta + 180) % 360 - 180)


def frechet_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Squared Fréchet distance of Gaussians with the means and covariances of two sets of features (N, D) and (M, D),
    as FID computes it (Heusel et al. 2017, arXiv:1706.08500, eq. 6); ≥ 0, NaN for fewer than two rows.

    It falls with the number of rows: only sets of equal size are compared with the same second set.
    """
    if min(len(first), len(second)) < 2:
        return float("nan")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    shift = first.mean(axis=0) - second.mean(axis=0)
    one, other = (np.cov(features, rowvar=False).reshape(shift.size, shift.size) for features in (first, second))
    # tr √(AB) = tr √(√A B √A), whose argument is symmetric.
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(min=0)).sum()
    return max(0.0, float(shift @ shift + np.trace(one) + np.trace(other) - 2 * cross))


def cosine(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Row-wise cosine of (N, D) and (N, D). Zero rows are refused: they mark failed loads, not faces."""
    lengths = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    if min(lengths[0].min(initial=1), lengths[1].min(initial=1)) == 0:
        raise ValueError("a zero vector has no direction: mark missing faces instead of embedding them")
    return (np.asarray(first, np.float64) * second).sum(axis=1) / (lengths[0] * lengths[1])
