"""Exact inner-product search with FAISS, and the figures of one query kind in one space."""

from collections.abc import Mapping
from dataclasses import dataclass

import faiss
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
    """[√w·first ; √(1−w)·second] of unit vectors: inner products are w·cos₁ + (1−w)·cos₂."""
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight}")
    parts = [np.sqrt(weight) * unit(first.vectors), np.sqrt(1 - weight) * unit(second.vectors)]
    return Embeddings(vectors=np.hstack(parts).astype(np.float32), present=first.present & second.present)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows divided by their length; zero rows stay zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length == 0, 1, length)).astype(np.float32)


def search(gallery: Embeddings, queries: Embeddings, *, block: int = 1024) -> NDArray[np.float32]:
    """Cosine of every query with every gallery item (Q, G) by FAISS; −inf where either has no face.

    Raises CheckpointError for embeddings that are not finite: FAISS would give them some place without a word.
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
    index = faiss.IndexFlatIP(gallery.vectors.shape[1])
    index.add(unit(gallery.vectors[known]))
    asked = np.flatnonzero(queries.present)
    for start in range(0, len(asked), block):
        rows = asked[start : start + block]
        found, position = index.search(unit(queries.vectors[rows]), len(known))
        scores[rows[:, None], known[position]] = found
    return scores


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Per-query results of one space, kept for paired comparisons, and their summary."""

    ranks: NDArray[np.int64]
    precision: NDArray[np.float64]
    identity: NDArray[np.int64]
    summary: Mapping[str, Estimate]


def score_queries(scores: NDArray[np.floating], queries: Queries) -> Outcome:
    """Rank-1/5/10 and mAP with intervals by identity; queries without a detected face are misses."""
    ranks = first_right_rank(scores, queries.relevant, queries.excluded)
    precision = average_precision(scores, queries.relevant, queries.excluded)
    summary = {f"rank-{k}": identity_bootstrap(recall_at(ranks, k), queries.identity) for k in RANKS}
    summary["mAP"] = identity_bootstrap(precision, queries.identity)
    return Outcome(ranks=ranks, precision=precision, identity=queries.identity, summary=summary)
