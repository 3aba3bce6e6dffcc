"""The retrieval evaluation: all query kinds in all spaces, compared query by query."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.retrieval.search import Outcome, best_rows, concatenate, score_queries, search
from eval.retrieval.spaces import (
    Portraits,
    RetrievalModel,
    baseline_spaces,
    encode_text,
    joint_gallery,
    joint_queries,
)
from faceclip.retrieval.labels import Labels
from faceclip.retrieval.queries import Queries, QueryKind, build_queries, explain_top, rank1
from faceclip.statistics import Estimate, paired_difference, recall_at

JOINT = "joint"
WEIGHTS = tuple(np.round(np.linspace(0.1, 0.9, 17), 3).tolist())


@dataclass(frozen=True, kw_only=True)
class KindResult:
    """Outcomes per space for one kind of query, and joint − space in rank-1 over the same queries."""

    queries: Queries
    outcomes: Mapping[str, Outcome]
    differences: Mapping[str, Estimate]
    first: Mapping[str, Mapping[str, float]]  # space → what stands first, composed queries only
    top: Mapping[str, NDArray[np.int64]]  # space → (Q, 5) rows of the gallery, for pictures


def tune_weight(model: RetrievalModel, portraits: Portraits, labels: Labels, *, seed: int, limit: int) -> float:
    """Returns the face's weight at which the concatenation answers most composed queries, on another split."""
    queries = build_queries(labels, "face+text", seed=seed, limit=limit)
    text = encode_text(model, queries.text)
    face, image = portraits.face_space, portraits.image_space
    asked = face.take(queries.face)
    best, chosen = -1.0, 0.5
    for weight in WEIGHTS:
        scores = search(concatenate(face, image, weight=weight), concatenate(asked, text, weight=weight))
        value = rank1(scores, queries).mean()
        if value > best:
            best, chosen = float(value), float(weight)
    return chosen


def evaluate_kind(
    model: RetrievalModel,
    portraits: Portraits,
    labels: Labels,
    kind: QueryKind,
    *,
    seed: int = 0,
    limit: int | None = None,
    weight: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> KindResult:
    """Evaluates one kind of query in the joint space and in every baseline."""
    queries = build_queries(labels, kind, seed=seed, limit=limit)
    spaces = {JOINT: (joint_gallery(model, portraits), joint_queries(model, portraits, queries, progress=progress))}
    spaces |= baseline_spaces(model, portraits, queries, weight=weight, seed=seed)
    outcomes, first, top = {}, {}, {}
    for name, (gallery, asked) in spaces.items():
        scores = search(gallery, asked)
        outcomes[name] = score_queries(scores, queries)
        shown = np.where(queries.excluded, -np.inf, scores)
        top[name] = best_rows(shown, 5)
        if queries.described is not None:
            first[name] = explain_top(scores, queries, labels)
    joint = recall_at(outcomes[JOINT].ranks, 1)
    differences = {
        name: paired_difference(joint, recall_at(outcome.ranks, 1), queries.identity)
        for name, outcome in outcomes.items()
        if name != JOINT
    }
    return KindResult(queries=queries, outcomes=outcomes, differences=differences, first=first, top=top)


def to_json(results: Mapping[QueryKind, KindResult]) -> dict:
    """Returns figures of all kinds, for `write_json`."""
    return {
        kind: {
            "queries": len(result.queries),
            "identities": len(np.unique(result.queries.identity)),
            "spaces": {name: outcome.summary for name, outcome in result.outcomes.items()},
            "joint minus space, rank-1": result.differences,
            "first answer": result.first,
        }
        for kind, result in results.items()
    }


def cumulative_match(ranks: NDArray[np.int64], at: Sequence[int]) -> list[float]:
    """Returns the share of queries answered within each rank."""
    return [float(recall_at(ranks, k).mean()) for k in at]
