"""Picture and text metrics on features made by hand."""

import numpy as np
import pytest
import torch

from eval.metrics.distances import cosine
from eval.metrics.pictures import (
    attribute_count,
    pairwise_mean,
    perceptual_distance,
    text_similarity,
)


def test_scores_of_texts_are_never_negative():
    pictures, texts = np.array([[3.0, 4], [1, 0]]), np.array([[4.0, 3], [-1, 0]])
    np.testing.assert_allclose(text_similarity(pictures, texts), [96, 0])
    np.testing.assert_allclose(cosine(pictures, texts), [0.96, -1])


def test_perceptual_distance_by_hand():
    # One layer, one place: directions (1, 0) and (0, 1); weights 2 and 3. A second layer differs by scale only.
    one = [torch.tensor([5.0, 0]).reshape(1, 2, 1, 1), torch.ones(1, 1, 2, 2)]
    other = [torch.tensor([0, 0.2]).reshape(1, 2, 1, 1), torch.full((1, 1, 2, 2), 9.0)]
    found = perceptual_distance(one, other, [torch.tensor([2.0, 3]), torch.tensor([4.0])])
    np.testing.assert_allclose(found, [5], rtol=1e-6)
    with pytest.raises(ValueError, match="layer"):
        perceptual_distance([], [], [])


def test_diversity_is_the_mean_over_pairs_of_a_group():
    distances = np.arange(16, dtype=float).reshape(4, 4)
    found = pairwise_mean(["a", "a", "b", "a"], lambda one, other: distances[one, other])
    np.testing.assert_allclose(found, [(1 + 3 + 7) / 3, np.nan, np.nan, np.nan])


def test_sure_attributes_are_counted():
    assert attribute_count(np.array([[0.9, 0.85, 0.2], [1, 1, 1]])).tolist() == [1, 3]
