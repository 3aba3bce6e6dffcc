"""Measures of the tower commands: identification, and retrieval among distractors."""

import numpy as np
from numpy.typing import NDArray

from faceclip.statistics import first_right_rank


def rank1_hits(
    embeddings: NDArray[np.floating], identities: NDArray, indices: NDArray
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Measures closed-set identification by cosine: the gallery has image 0 of every identity, all others are probes.

    embeddings (N, E) of any length, identities (N,), indices (N,): number of the image among those of its identity.
    Returns whether each probe is identified (P,), and the probes' rows (P,). A tie with another identity is a miss.
    Raises ValueError if a probe's identity has no gallery image.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    gallery, probes = np.flatnonzero(indices == 0), np.flatnonzero(indices != 0)
    scores = unit[probes] @ unit[gallery].T
    own = identities[probes][:, None] == identities[gallery][None]
    if not own.any(axis=1).all():
        raise ValueError("some probe identities have no gallery image (index 0)")
    return first_right_rank(scores, own) == 1, probes


def recall_among(
    scores: NDArray[np.floating],
    ambiguous: NDArray[np.bool_],
    *,
    distractors: int,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """Returns whether row i's own column i beats `distractors` random other columns of `scores` (N, N).

    Ties are misses. Columns marked in `ambiguous` (N, N) are never drawn as distractors of that row. rows (Q,): the
    queries, in the order of the result (Q,); None: all rows. Raises ValueError if a row has too few other columns.
    """
    rng = np.random.default_rng(0)
    rows = np.arange(len(scores)) if rows is None else rows
    hits = np.zeros(len(rows), dtype=bool)
    for place, row in enumerate(rows):
        line, allowed = scores[row], ~ambiguous[row]
        allowed[row] = False
        others = np.flatnonzero(allowed)
        if len(others) < distractors:
            raise ValueError(f"query {row} has {len(others)} usable distractors, fewer than {distractors}")
        hits[place] = line[row] > line[rng.choice(others, size=distractors, replace=False)].max()
    return hits
