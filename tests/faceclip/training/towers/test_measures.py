"""Rank-1 and recall on cases small enough to count by hand."""

import numpy as np
import pytest

from faceclip.training.towers.measures import rank1_hits, recall_among


def test_rank1_counts_probes_and_ties_are_misses() -> None:
    identities = np.array([5, 5, 5, 9, 9])
    indices = np.array([0, 1, 2, 0, 1])
    embeddings = np.array([[1, 0], [2, 0.1], [1, 1], [0, 3], [0.2, 1.0]])
    hits, probes = rank1_hits(embeddings, identities, indices)
    assert probes.tolist() == [1, 2, 4]
    assert hits.tolist() == [True, False, True]  # (1, 1) is as near to both people: a tie


def test_rank1_needs_a_gallery_image() -> None:
    with pytest.raises(ValueError, match="gallery"):
        rank1_hits(np.eye(3), np.array([0, 0, 1]), np.array([0, 1, 1]))


def test_recall_leaves_ambiguous_distractors_out() -> None:
    scores = np.array([[0.5, 0.9, 0.1], [0.0, 1.0, 0.2], [0.7, 0.0, 0.7]])
    nothing = np.zeros((3, 3), dtype=bool)
    assert recall_among(scores, nothing, distractors=2).tolist() == [False, True, False]
    ambiguous = nothing.copy()
    ambiguous[0, 1] = ambiguous[1, 0] = ambiguous[2, 0] = True
    assert recall_among(scores, ambiguous, distractors=1).tolist() == [True, True, True]
    with pytest.raises(ValueError, match="distractors"):
        recall_among(scores, ambiguous, distractors=2)
