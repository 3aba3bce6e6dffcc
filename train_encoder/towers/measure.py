"""Measured figures with 95 % intervals.

Every resampling is over whole identities, since images of one person are not independent.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A mean with the bounds of its 95 % identity bootstrap, over `count` values of `identities` people."""

    value: float
    low: float
    high: float
    count: int
    identities: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def identity_bootstrap(values: NDArray, identities: NDArray, *, resamples: int = 2000, seed: int = 0) -> Figure:
    """Mean of `values` (N,) and its percentile bootstrap (Efron 1979) over whole identities (N,).

    Raises ValueError for an empty or ragged input.
    """
    if len(values) == 0 or len(values) != len(identities):
        raise ValueError(f"need one identity per value and at least one: {len(values)}, {len(identities)}")
    _, groups = np.unique(identities, return_inverse=True)
    sums = np.bincount(groups, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(groups)
    draws = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Figure(
        value=float(sums.sum() / counts.sum()),
        low=float(low),
        high=float(high),
        count=len(values),
        identities=len(sums),
    )


def rank1_hits(
    embeddings: NDArray[np.floating], identities: NDArray, indices: NDArray
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Closed-set identification: gallery = image index 0 of every identity, probes = all others, cosine.

    Returns one bool per probe and the probes' row numbers. A tie with another identity counts as a miss.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    gallery, probes = np.flatnonzero(indices == 0), np.flatnonzero(indices != 0)
    scores = unit[probes] @ unit[gallery].T
    own = identities[probes][:, None] == identities[gallery][None]
    if not own.any(axis=1).all():
        raise ValueError("some probe identities have no gallery image (index 0)")
    best_own = np.where(own, scores, -np.inf).max(axis=1)
    best_other = np.where(own, -np.inf, scores).max(axis=1)
    return best_own > best_other, probes


def recall_among(
    scores: NDArray[np.floating],
    ambiguous: NDArray[np.bool_],
    *,
    distractors: int,
    seed: int = 0,
) -> NDArray[np.bool_]:
    """Whether row i's own column i beats `distractors` random others of `scores` (N, N); ties are misses.

    Columns marked in `ambiguous` (N, N) are never drawn as distractors of that row.
    """
    rng = np.random.default_rng(seed)
    hits = np.zeros(len(scores), dtype=bool)
    for row, line in enumerate(scores):
        allowed = ~ambiguous[row]
        allowed[row] = False
        others = np.flatnonzero(allowed)
        if len(others) < distractors:
            raise ValueError(f"query {row} has {len(others)} usable distractors, fewer than {distractors}")
        hits[row] = line[row] > line[rng.choice(others, size=distractors, replace=False)].max()
    return hits
