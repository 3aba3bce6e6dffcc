"""Search in galleries that no table of scores fits: blocks of queries, FAISS's best k, ranks with the exact tie rule.

FAISS gives each query its k best items. They decide the rank of the best right item, and the average precision, of
nearly all queries: where a right item's score lies above the last of the k, every item before it is among them. What
they leave open is counted by products with the whole gallery, part by part. Memory is that of the gallery and of a few
blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from eval.retrieval.search import unit
from faceclip.errors import CheckpointError
from faceclip.statistics import NEVER, TIE_TOLERANCE

BLOCK = 1024  # queries at a time
PART = 65_536  # gallery items at a time, where all are counted
BEST = 64  # items that FAISS is asked for


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Rows of the gallery for each of Q queries: those of query q are rows[start[q] : start[q + 1]], sorted."""

    rows: NDArray[np.int64]
    start: NDArray[np.int64]

    @classmethod
    def of(cls, lists: Sequence[Sequence[int] | NDArray[np.integer]]) -> "Ragged":
        parts = [np.unique(np.asarray(part, np.int64)) for part in lists]
        start = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return cls(rows=np.concatenate(parts) if parts else np.zeros(0, np.int64), start=start)

    @classmethod
    def same_label(cls, asked: NDArray[np.integer], gallery: NDArray[np.integer]) -> "Ragged":
        """Returns the items of each query's label: (Q,) labels asked, (G,) labels of the gallery."""
        order = np.argsort(gallery, kind="stable")
        ranked = np.asarray(gallery)[order]
        low, high = (np.searchsorted(ranked, asked, side=side) for side in ("left", "right"))
        start = np.concatenate([[0], np.cumsum(high - low)]).astype(np.int64)
        rows = np.concatenate([order[a:b] for a, b in zip(low, high, strict=True)]) if len(asked) else order[:0]
        return cls(rows=rows.astype(np.int64), start=start)

    def of_query(self, query: int) -> NDArray[np.int64]:
        return self.rows[self.start[query] : self.start[query + 1]]

    def __len__(self) -> int:
        return len(self.start) - 1


@dataclass(frozen=True, kw_only=True)
class Found:
    """Per query: the best items (Q, k) and their scores, rank of the best right item from 1 (`NEVER` without one),
    average precision. counted: queries that needed the whole gallery beyond FAISS's answer."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    ranks: NDArray[np.int64]
    precision: NDArray[np.float64]
    counted: int


def flat_index(vectors: NDArray[np.float32], *, part: int = PART) -> Any:
    """Returns an exact index of gallery vectors (G, D), made unit part by part; vectors may be memory-mapped.

    Raises CheckpointError for vectors that are not finite.
    """
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), part):
        piece = np.asarray(vectors[start : start + part], np.float32)
        if not np.isfinite(piece).all():
            raise CheckpointError(
                "the gallery's embeddings are not finite: the model is damaged or its training diverged"
            )
        index.add(unit(piece))
    return index


def top_k(
    index: Any, queries: NDArray[np.float32], k: int, *, block: int = BLOCK
) -> Iterator[tuple[slice, NDArray, NDArray]]:
    """Yields (queries, scores (B, k), rows (B, k)) block by block; queries (Q, D) of any length are made unit."""
    k = min(k, index.ntotal)
    for start in range(0, len(queries), block):
        part = slice(start, min(start + block, len(queries)))
        asked = np.asarray(queries[part], np.float32)
        if not np.isfinite(asked).all():
            raise CheckpointError(
                "the queries' embeddings are not finite: the model is damaged or its training diverged"
            )
        scores, rows = index.search(unit(asked), k)
        yield part, scores, rows


def search_exactly(
    index: Any,
    queries: NDArray[np.float32],
    relevant: Ragged,
    *,
    excluded: Ragged | None = None,
    k: int = BEST,
    block: int = BLOCK,
) -> Found:
    """Returns ranks and average precision of queries (Q, D) in a flat index, with the pessimistic tie rule of
    `faceclip.statistics`, as a whole table of scores would give them.

    relevant: the right items of each query; excluded: items out of the gallery for it, such as the query itself.
    """
    best = min(k, index.ntotal)
    shape = (len(queries), best)
    rows, scores = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    ranks, precision = np.full(len(queries), NEVER, np.int64), np.zeros(len(queries))
    vectors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    counted = 0
    for part, found_scores, found_rows in top_k(index, queries, best, block=block):
        rows[part], scores[part] = found_rows, found_scores
        asked = unit(np.asarray(queries[part], np.float32))
        open_queries: list[tuple[int, NDArray[np.float64], NDArray[np.int64]]] = []
        for place in range(part.stop - part.start):
            query = part.start + place
            out = excluded.of_query(query) if excluded is not None else np.zeros(0, np.int64)
            right = relevant.of_query(query)
            right = right[~np.isin(right, out)]
            if not len(right):
                continue
            # Each item's own product, not FAISS's: products of other shapes differ in their last bits.
            own = np.sort((vectors[right] @ asked[place]).astype(np.float64))[::-1]
            last = -np.inf if best == index.ntotal else float(found_scores[place, -1]) + TIE_TOLERANCE
            wrong = ~np.isin(found_rows[place], right) & ~np.isin(found_rows[place], out)
            others = np.sort(found_scores[place][wrong].astype(np.float64))
            before = len(others) - np.searchsorted(others, own - TIE_TOLERANCE, side="left")
            if own[-1] - TIE_TOLERANCE > last:
                ranks[query], precision[query] = _figures(before)
            else:
                open_queries.append((place, own, np.concatenate([right, out])))
        counted += len(open_queries)
        _count_all(vectors, asked, open_queries, part.start, ranks, precision)
    return Found(rows=rows, scores=scores, ranks=ranks, precision=precision, counted=counted)


def _figures(before: NDArray[np.int64]) -> tuple[int, float]:
    """Returns the first right item's rank and average precision, by the wrong items before each right one."""
    hits = np.arange(1, len(before) + 1)
    return int(before[0]) + 1, float((hits / (hits + before)).mean())


def _count_all(
    vectors: NDArray[np.float32],
    asked: NDArray[np.float32],
    open_queries: list[tuple[int, NDArray[np.float64], NDArray[np.int64]]],
    first: int,
    ranks: NDArray[np.int64],
    precision: NDArray[np.float64],
) -> None:
    """Counts the wrong items before each right one over the whole gallery, for queries that the best k left open."""
    if not open_queries:
        return
    before = [np.zeros(len(own), np.int64) for _, own, _ in open_queries]
    left = asked[[place for place, _, _ in open_queries]]
    for start in range(0, len(vectors), PART):
        piece = vectors[start : start + PART]
        products = left @ piece.T
        for number, (_, own, known) in enumerate(open_queries):
            line = products[number].astype(np.float64)
            inside = known[(known >= start) & (known < start + len(piece))] - start
            line[inside] = -np.inf
            limits = own[::-1] - TIE_TOLERANCE  # ascending
            high = line[line >= limits[0]]
            passed = np.bincount(np.searchsorted(limits, high, side="right"), minlength=len(limits) + 1)
            before[number] += np.cumsum(passed[::-1])[: len(limits)]
    for (place, _, _), count in zip(open_queries, before, strict=True):
        ranks[first + place], precision[first + place] = _figures(count)
