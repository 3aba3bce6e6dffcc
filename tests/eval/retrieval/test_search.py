"""FAISS scores against plain products, missing faces, and the concatenation baseline."""

import numpy as np
import pytest

from eval.retrieval.search import Embeddings, all_present, best_rows, concatenate, score_queries, search
from faceclip.errors import CheckpointError
from faceclip.retrieval.queries import Queries
from faceclip.statistics import NEVER

RNG = np.random.default_rng(0)


def test_scores_are_cosines():
    gallery, queries = RNG.normal(size=(30, 8)).astype(np.float32), RNG.normal(size=(7, 8)).astype(np.float32)
    scores = search(all_present(gallery), all_present(queries), block=3)
    expected = (queries @ gallery.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(gallery, axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_missing_faces_have_no_score():
    vectors = RNG.normal(size=(3, 4)).astype(np.float32)
    present = np.array([True, False, True])
    embeddings = Embeddings(vectors=vectors, present=present)
    scores = search(embeddings, embeddings)
    assert np.isfinite(scores).tolist() == (present[:, None] & present[None]).tolist()
    nobody = Embeddings(vectors=vectors, present=np.zeros(3, dtype=bool))
    assert (search(nobody, embeddings) == -np.inf).all()


@pytest.mark.parametrize("side", ["gallery", "queries"])
def test_embeddings_that_are_not_numbers_are_refused(side):
    """FAISS gives no score for them, and places that are other items'."""
    broken, whole = (RNG.normal(size=(3, 4)).astype(np.float32) for _ in range(2))
    broken[1, 2] = np.nan
    pair = (broken, whole) if side == "gallery" else (whole, broken)
    with pytest.raises(CheckpointError, match=rf"\b{side} .*\b1 of 3\b"):
        search(*map(all_present, pair))
    marked = Embeddings(vectors=broken, present=np.array([True, False, True]))  # of undetected faces nobody asks
    assert np.isfinite(search(marked, all_present(whole))).sum() == 6


def test_concatenation_adds_weighted_cosines():
    face, text = (all_present(RNG.normal(size=(5, d)).astype(np.float32)) for d in (4, 6))
    both = search(concatenate(face, text, weight=0.3), concatenate(face, text, weight=0.3))
    expected = 0.3 * search(face, face) + 0.7 * search(text, text)
    np.testing.assert_allclose(both, expected, atol=1e-6)
    for weight, alone in ((0, text), (1, face)):
        both = concatenate(face, text, weight=weight)
        np.testing.assert_allclose(search(both, both), search(alone, alone), atol=1e-6)
    assert np.array_equal(concatenate(face, text).vectors, concatenate(face, text, weight=0.5).vectors)
    for weight in (1.5, -0.5):
        with pytest.raises(ValueError, match=rf"^weight .*{weight}$"):
            concatenate(face, text, weight=weight)
    with pytest.raises(ValueError, match="dimension 4, queries 6"):
        search(face, text)


def test_a_concatenation_exists_where_both_parts_do():
    vectors = RNG.normal(size=(4, 2)).astype(np.float32)
    first, second = (Embeddings(vectors=vectors, present=np.array(found)) for found in ([1, 1, 0, 0], [1, 0, 1, 0]))
    assert concatenate(first, second).present.tolist() == [1, 0, 0, 0]
    zero = all_present(np.zeros((1, 2), np.float32))
    assert search(zero, zero).tolist() == [[0.0]]


def test_undetected_query_is_a_miss():
    relevant = np.eye(2, dtype=bool)
    queries = Queries(
        kind="face",
        face=np.arange(2),
        text=["", ""],
        relevant=relevant,
        excluded=np.zeros((2, 2), dtype=bool),
        identity=np.arange(2),
    )
    scores = np.array([[0.9, 0.1], [-np.inf, -np.inf]])
    outcome = score_queries(scores, queries)
    assert outcome.ranks.tolist() == [1, NEVER]
    assert outcome.summary["rank-1"].value == 0.5 and outcome.summary["mAP"].value == 0.5


def test_a_summary_holds_means_of_the_queries_and_counts_their_people():
    # Ranks 1, 2 and 4: precisions 1, 1/2 and 1/4. The first two queries are about one person.
    scores = np.array([[4.0, 3, 2, 1]] * 3)
    relevant = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)
    queries = Queries(
        kind="face",
        face=np.zeros(3, np.int64),
        text=[""] * 3,
        relevant=relevant,
        excluded=np.zeros_like(relevant),
        identity=np.array([7, 7, 9]),
    )
    outcome = score_queries(scores, queries)
    assert outcome.ranks.tolist() == [1, 2, 4]
    figures = outcome.summary
    assert figures["mAP"].value == pytest.approx(1.75 / 3) and figures["mAP"].identities == 2
    assert [figures[f"rank-{k}"].value for k in (1, 5)] == [pytest.approx(1 / 3), 1.0]


def test_the_best_rows_stand_in_their_order():
    scores = np.array([[0.1, 0.5, 0.5, 0.9], [0.4, 0.3, 0.2, 0.1]])
    assert best_rows(scores, 2).tolist() == [[3, 1], [0, 1]]
    assert best_rows(scores, 9).tolist() == [[3, 1, 2, 0], [0, 1, 2, 3]]
    assert best_rows(scores, 0).shape == (2, 0)
