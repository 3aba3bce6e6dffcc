"""Cosines of all queries with all of a gallery, and the figures of one query kind in one space.

Whole tables of scores suit galleries of some ten thousand portraits; `eval.retrieval.streaming` searches larger ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faceclip.errors import CheckpointError
from faceclip.retrieval.queries import Queries
from faceclip.statistics import Estimate, average_precision, first_right_rank, identity_bootstrap, recall_at

RANKS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Vectors (N, D) and which exist (N,): rows without a detected face are never searched or found."""

    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]

    def take(self, rows: NDArray[np.integer]) -> "Embeddings":
        return Embeddings(vectors=self.vectors[rows], present=self.present[rows])


def all_present(vectors: NDArray[np.float32]) -> Embeddings:
    return Embeddings(vectors=vectors, present=np.ones(len(vectors), dtype=bool))


def concatenate(first: Embeddings, second: Embeddings, *, weight: float = 0.5) -> Embeddings:
    """Returns [√w·first ; √(1−w)·second] of unit vectors: inner products are w·cos₁ + (1−w)·cos₂."""
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight}")
    parts = [np.sqrt(weight) * unit(first.vectors), np.sqrt(1 - weight) * unit(second.vectors)]
    return Embeddings(vectors=np.hstack(parts).astype(np.float32), present=first.present & second.present)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Returns rows divided by their length; zero rows stay zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length == 0, 1, length)).astype(np.float32)


def search(gallery: Embeddings, queries: Embeddings, *, block: int = 1024) -> NDArray[np.float32]:
    """Returns the cosine of every query with every gallery item (Q, G); −inf where either has no face.

    Raises CheckpointError for embeddings that are not finite: a search would give them some place without a word.
    """
    if gallery.vectors.shape[1] != queries.vectors.shape[1]:
        raise ValueError(f"gallery has dimension {gallery.vectors.shape[1]}, queries {queries.vectors.shape[1]}")
    for name, side in (("gallery", gallery), ("queries", queries)):
        odd = side.present & ~np.isfinite(side.vectors).all(axis=1)
        if odd.any():
            raise CheckpointError(
                f"the model's embeddings of the {name} are not finite in {odd.sum()} of {len(odd)} rows: it is damaged "
                "or its training diverged; train or fetch it again"
            )
    known = np.flatnonzero(gallery.present)
    scores = np.full((len(queries.vectors), len(gallery.vectors)), -np.inf, dtype=np.float32)
    if not len(known):
        return scores
    items = unit(gallery.vectors[known]).T
    asked = np.flatnonzero(queries.present)
    for start in range(0, len(asked), block):
        rows = asked[start : start + block]
        scores[np.ix_(rows, known)] = unit(queries.vectors[rows]) @ items
    return scores


def best_rows(scores: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Returns columns (Q, count) of the largest of scores (Q, G), the best first, equal ones in their order; fewer
    where G is less. As a stable sort of all scores, without sorting them."""
    count = min(count, scores.shape[1])
    result = np.empty((len(scores), count), np.int64)
    if not count:
        return result
    last = np.partition(scores, scores.shape[1] - count, axis=1)[:, -count]
    for row, (values, limit) in enumerate(zip(scores, last, strict=True)):
        above = np.flatnonzero(values > limit)
        above = above[np.argsort(-values[above], kind="stable")]
        equal = np.flatnonzero(values == limit)[: count - len(above)]
        result[row] = np.concatenate([above, equal])
    return result


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Per-query results of one space, kept for paired comparisons, and their summary."""

    ranks: NDArray[np.int64]
    precision: NDArray[np.float64]
    identity: NDArray[np.int64]
    summary: Mapping[str, Estimate]


def score_queries(scores: NDArray[np.floating], queries: Queries) -> Outcome:
    """Returns rank-1/5/10 and mAP with intervals by identity; queries without a detected face are misses."""
    ranks = first_right_rank(scores, queries.relevant, queries.excluded)
    precision = average_precision(scores, queries.relevant, queries.excluded)
    summary = {f"rank-{k}": identity_bootstrap(recall_at(ranks, k), queries.identity) for k in RANKS}
    summary["mAP"] = identity_bootstrap(precision, queries.identity)
    return Outcome(ranks=ranks, precision=precision, identity=queries.identity, summary=summary)
