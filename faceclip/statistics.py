"""Ranks, average precision and bootstrap intervals: the statistics of every report, model card and validation.

Tie rule, the same everywhere: pessimistic. A wrong item whose score equals a right one's (to
`TIE_TOLERANCE`) counts as ranked before it, so that a model that gives everything the same score earns the
worst rank, not a lucky one.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

# fp32 inner products of unit vectors repeat to about 1e-7 between batch sizes.
TIE_TOLERANCE = 1e-6
DRAWS_AT_ONCE = 1 << 24  # people drawn at a time by the bootstrap, so that many people need little memory
NEVER = np.iinfo(np.int64).max
"""Rank of a query whose right answer cannot be found, for example because no face was detected."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `count` values with its 95 % interval from a bootstrap over `identities` people."""

    value: float
    low: float
    high: float
    count: int
    identities: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def first_right_rank(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], excluded: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Rank from 1 of the best right item per query, ties counted against it.

    `scores` (Q, G): higher is better, −inf for items that cannot be found; `relevant` (Q, G); `excluded`
    (Q, G): items out of the gallery for this query. A query without a right item to find has rank `NEVER`.
    """
    scores, relevant = _masked(scores, relevant, excluded)
    best = np.where(relevant, scores, -np.inf).max(axis=1)
    wrong_before = (~relevant & (scores >= best[:, None] - TIE_TOLERANCE) & np.isfinite(scores)).sum(axis=1)
    return np.where(np.isfinite(best), wrong_before + 1, NEVER)


def average_precision(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], excluded: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Average precision per query: the mean over its right items of the precision at their rank.

    Arguments as in `first_right_rank`. Right items with score −inf contribute 0; so does a query without any.
    """
    scores, relevant = _masked(scores, relevant, excluded)
    result = np.zeros(len(scores))
    for query, (row, right) in enumerate(zip(scores, relevant, strict=True)):
        total = int(right.sum())
        found = np.sort(row[right & np.isfinite(row)])[::-1]
        if not total or not len(found):
            continue
        wrong = np.sort(row[~right & np.isfinite(row)])
        wrong_before = len(wrong) - np.searchsorted(wrong, found - TIE_TOLERANCE, side="left")
        hits = np.arange(1, len(found) + 1)
        result[query] = (hits / (hits + wrong_before)).sum() / total
    return result


def _masked(
    scores: NDArray[np.floating], relevant: NDArray[np.bool_], excluded: NDArray[np.bool_] | None
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    if scores.shape != relevant.shape or (excluded is not None and excluded.shape != scores.shape):
        raise ValueError(f"scores {scores.shape}, relevant {relevant.shape} and excluded must have the same shape")
    scores = np.asarray(scores, dtype=np.float64)
    if np.isnan(scores).any():
        raise ValueError("scores contain NaN: embeddings of undetected faces must be marked, not computed")
    if excluded is None:
        return scores, relevant
    return np.where(excluded, -np.inf, scores), relevant & ~excluded


def recall_at(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """1 where the first right item is among the best k, else 0."""
    return (ranks <= k).astype(np.float64)


def identity_bootstrap(
    values: NDArray[np.floating] | NDArray[np.bool_],
    identities: NDArray[np.integer],
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Mean of `values` (Q,) and its percentile interval (Efron 1979) when whole identities are drawn with replacement.

    Values of one person are not independent: drawing values would give intervals that are too narrow.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != np.shape(identities) or values.ndim != 1:
        raise ValueError(f"values {values.shape} and identities {np.shape(identities)} must be equal and flat")
    if len(values) == 0:
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"), count=0, identities=0)
    _, group = np.unique(identities, return_inverse=True)
    sums = np.bincount(group, weights=values)
    counts = np.bincount(group)
    people = len(counts)
    rng, means = np.random.default_rng(seed), []
    rows = max(1, DRAWS_AT_ONCE // people)
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, people, size=(min(rows, resamples - start), people))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Estimate(value=float(values.mean()), low=float(low), high=float(high), count=len(values), identities=people)


def paired_difference(
    first: NDArray[np.floating], second: NDArray[np.floating], identities: NDArray[np.integer], **options: int
) -> Estimate:
    """Mean of first − second over the same queries, with its interval: beats means low > 0."""
    return identity_bootstrap(np.asarray(first, np.float64) - np.asarray(second, np.float64), identities, **options)


def paired_permutation(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    identities: NDArray[np.integer],
    *,
    resamples: int = 4000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the mean of first − second over the same queries, by changing the sign of whole persons'
    differences at random (Fisher's randomization test); NaN without a value.

    It is at least 1 / (resamples + 1).
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if difference.shape != np.shape(identities) or difference.ndim != 1:
        raise ValueError(f"values {difference.shape} and identities {np.shape(identities)} must be equal and flat")
    if not len(difference):
        return float("nan")
    _, group = np.unique(identities, return_inverse=True)
    sums = np.bincount(group, weights=difference)
    rng, extreme = np.random.default_rng(seed), 0
    rows = max(1, DRAWS_AT_ONCE // len(sums))
    # Sums of the same numbers in another order differ in their last bits.
    limit = abs(sums.sum()) * (1 - 1e-9)
    for start in range(0, resamples, rows):
        signs = rng.integers(0, 2, size=(min(rows, resamples - start), len(sums))) * 2 - 1
        extreme += int((np.abs(signs @ sums) >= limit).sum())
    return (extreme + 1) / (resamples + 1)


def holm(p_values: NDArray[np.floating]) -> NDArray[np.float64]:
    """p-values (K,) adjusted for K comparisons (Holm 1979), in the given order; NaN ones are no comparison."""
    values = np.asarray(p_values, np.float64)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * factors))
    return adjusted
