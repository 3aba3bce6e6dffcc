"""Streaming search against whole tables of scores: the same ranks, ties included."""

import numpy as np
import pytest

from eval.retrieval.search import all_present, best_rows, search, unit
from eval.retrieval.streaming import Ragged, flat_index, search_exactly, top_k
from faceclip.errors import CheckpointError
from faceclip.statistics import NEVER, average_precision, first_right_rank

RNG = np.random.default_rng(0)
PEOPLE = RNG.integers(0, 40, 300)
GALLERY = (RNG.normal(size=(40, 12))[PEOPLE] + 1.2 * RNG.normal(size=(300, 12))).astype(np.float32)
GALLERY[7] = GALLERY[200] = GALLERY[9]  # equal items of several people


@pytest.mark.parametrize("k", [3, 40, 1000])
def test_ranks_are_those_of_the_whole_table(k):
    asked = np.arange(0, 300, 3)
    relevant, excluded = Ragged.same_label(PEOPLE[asked], PEOPLE), Ragged.of([[row] for row in asked])
    found = search_exactly(flat_index(GALLERY, part=64), GALLERY[asked], relevant, excluded=excluded, k=k, block=32)
    scores = search(all_present(GALLERY), all_present(GALLERY[asked]))
    right = PEOPLE[asked][:, None] == PEOPLE
    out = asked[:, None] == np.arange(300)
    np.testing.assert_array_equal(found.ranks, first_right_rank(scores, right, out))
    np.testing.assert_allclose(found.precision, average_precision(scores, right, out), atol=1e-12)
    assert (found.counted > 0) == (k < 300)


def test_equal_items_of_others_stand_before_the_right_one():
    gallery = np.tile(np.array([[1.0, 0.0]], np.float32), (200, 1))
    found = search_exactly(flat_index(gallery), gallery[:1], Ragged.of([[5]]), k=10)
    assert found.ranks.tolist() == [200] and found.precision[0] == pytest.approx(1 / 200)


def test_a_query_without_a_right_item_is_never_answered():
    found = search_exactly(flat_index(GALLERY), GALLERY[:2], Ragged.of([[], [4]]), excluded=Ragged.of([[], [4]]))
    assert found.ranks.tolist() == [NEVER, NEVER] and not found.precision.any()


def test_items_of_a_label_are_found_without_a_table():
    found = Ragged.same_label(np.array([5, 99, 0]), PEOPLE)
    assert len(found) == 3 and found.of_query(1).size == 0
    for query, label in ((0, 5), (2, 0)):
        np.testing.assert_array_equal(found.of_query(query), np.flatnonzero(label == PEOPLE))


def test_blocks_cover_all_queries_and_odd_numbers_are_refused():
    parts = list(top_k(flat_index(GALLERY), GALLERY, 5, block=128))
    assert [part.start for part, _, _ in parts] == [0, 128, 256]
    rows = np.concatenate([rows for _, _, rows in parts])
    best = unit(GALLERY) @ unit(GALLERY).T
    np.testing.assert_allclose(np.take_along_axis(best, rows, 1), -np.sort(-best, axis=1)[:, :5], atol=1e-6)
    broken = GALLERY.copy()
    broken[3, 0] = np.inf
    with pytest.raises(CheckpointError, match="gallery"):
        flat_index(broken)
    with pytest.raises(CheckpointError, match="queries"):
        list(top_k(flat_index(GALLERY), broken, 5))


def test_best_rows_are_those_of_a_stable_sort():
    scores = RNG.integers(0, 4, (50, 9)).astype(np.float32)
    scores[0] = -np.inf
    for count in (1, 5, 20):
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(best_rows(scores, count), expected)
