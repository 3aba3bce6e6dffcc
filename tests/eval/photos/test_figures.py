"""Figures over photos of people, by hand and against direct counting."""

import numpy as np
import pytest

from eval.photos.figures import accepted, area, by_people, one_shot, pairs

PEOPLE = np.array([0, 0, 1, 1, 2])
SCORES = np.array(
    [
        [1.0, 0.9, 0.1, 0.2, 0.3],
        [0.9, 1.0, 0.2, 0.1, 0.8],
        [0.1, 0.2, 1.0, 0.3, 0.1],
        [0.2, 0.1, 0.3, 1.0, 0.3],
        [0.3, 0.8, 0.1, 0.3, 1.0],
    ]
)


def test_pairs_and_area_by_hand():
    scores, same = pairs(SCORES, PEOPLE, np.arange(5))
    assert len(scores) == 10 and same.sum() == 2
    right, wrong = scores[same], scores[~same]
    expected = np.mean([(a > b) + 0.5 * (a == b) for a in right for b in wrong])
    assert area(scores, same) == pytest.approx(expected)
    assert np.isnan(area(scores[~same], same[~same]))
    repeated, _ = pairs(SCORES, PEOPLE, np.array([0, 0, 1]))
    assert repeated.tolist() == [0.9, 0.9]  # a photo is no pair with itself


def test_accepted_at_a_rate_of_false_pairs():
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(2, 1, 4000), random.normal(0, 1, 40000)])
    same = np.arange(len(scores)) < 4000
    assert accepted(scores, same, 1e-2) == pytest.approx(0.372, abs=0.03)  # P(N(2, 1) > 2.326)
    assert np.isnan(accepted(scores[:4100], same[:4100], 1e-3))  # too few pairs to know


def test_one_shot_by_hand_and_ties_are_misses():
    right, who = one_shot(SCORES, PEOPLE, np.array([True, False, True, False, True]))
    assert who.tolist() == [0, 1] and right.tolist() == [1.0, 0.0]


def test_intervals_come_from_people():
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 50)
    figure = by_people(lambda rows: float(values[rows].mean()), np.repeat(np.arange(4), 50))
    assert figure.value == 0.5 and figure.low <= 0.25 and figure.high >= 0.75 and figure.identities == 4
