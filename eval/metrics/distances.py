"""Distances between angles, between vectors, and between sets of features."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS = 1024  # of a kernel matrix computed at a time


def angle_difference(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the absolute difference of angles in degrees, in [0, 180]."""
    delta = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return np.abs((delta + 180) % 360 - 180)


def frechet_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Returns the squared Fréchet distance of Gaussians with the means and covariances of two sets of features (N, D)
    and (M, D), as FID computes it (Heusel et al. 2017, arXiv:1706.08500, eq. 6); ≥ 0, NaN for fewer than two rows.

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
    """Returns the row-wise cosine of (N, D) and (N, D). Zero rows are refused: they mark failed loads, not faces."""
    lengths = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    if min(lengths[0].min(initial=1), lengths[1].min(initial=1)) == 0:
        raise ValueError("a zero vector has no direction: mark missing faces instead of embedding them")
    return (np.asarray(first, np.float64) * second).sum(axis=1) / (lengths[0] * lengths[1])


def polynomial_mmd(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Returns the unbiased squared maximum mean discrepancy of two sets of features (N, D) and (M, D) under the kernel
    (x·y / D + 1)³: KID over whole sets (Bińkowski et al. 2018, arXiv:1801.01401, eq. 4 and section 4).

    It may be negative, and its expectation does not depend on N and M. NaN for fewer than two rows.
    """
    if min(len(first), len(second)) < 2:
        return float("nan")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)

    def total(one: NDArray, other: NDArray, *, same: bool) -> float:
        found = 0.0
        for start in range(0, len(one), ROWS):
            part = one[start : start + ROWS]
            found += float(((part @ other.T / one.shape[1] + 1) ** 3).sum())
        if same:
            found -= float((((one**2).sum(axis=1) / one.shape[1] + 1) ** 3).sum())
        return found

    n, m = len(first), len(second)
    within = total(first, first, same=True) / (n * (n - 1)) + total(second, second, same=True) / (m * (m - 1))
    return within - 2 * total(first, second, same=False) / (n * m)


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """Mean and standard deviation of the kernel distance over random subsets of `size` rows."""

    mean: float
    deviation: float
    size: int


def kernel_inception_distance(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Returns KID as it is usually reported, the `polynomial_mmd` of `subsets` pairs of random subsets without
    replacement.

    Sets smaller than `size` are drawn whole, which leaves a deviation of 0 and is said by `size` of the result.
    """
    size = min(size, len(first), len(second))
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(subsets if size < max(len(first), len(second)) else 1):
        rows = generator.choice(len(first), size, replace=False), generator.choice(len(second), size, replace=False)
        values.append(polynomial_mmd(first[rows[0]], second[rows[1]]))
    return KernelDistance(mean=float(np.mean(values)), deviation=float(np.std(values)), size=size)


def gaussian_mmd(
    first: NDArray[np.floating], second: NDArray[np.floating], *, sigma: float = 10.0, scale: float = 1000.0
) -> float:
    """Returns CMMD, which is `scale` times the squared maximum mean discrepancy under exp(−|x − y|² / 2σ²) of features
    of unit length (Jayasumana et al. 2024, arXiv:2401.09603, section 4).

    The estimator keeps the diagonals, as the authors' does: it is ≥ 0 and biased, little at their 30,000 pictures. NaN
    for an empty set.
    """
    if not len(first) or not len(second):
        return float("nan")

    def unit(features: NDArray) -> NDArray[np.float64]:
        features = np.asarray(features, np.float64)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    def mean(one: NDArray, other: NDArray) -> float:
        found = 0.0
        for start in range(0, len(one), ROWS):
            part = one[start : start + ROWS]
            square = (part**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * part @ other.T
            found += float(np.exp(-square / (2 * sigma**2)).sum())
        return found / (len(one) * len(other))

    first, second = unit(first), unit(second)
    return scale * (mean(first, first) + mean(second, second) - 2 * mean(first, second))
