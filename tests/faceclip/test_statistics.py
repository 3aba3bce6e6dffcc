"""Every figure of a fixture with answers worked out by hand."""

import numpy as np
import pytest

from faceclip.statistics import (
    NEVER,
    TIE_TOLERANCE,
    average_precision,
    first_right_rank,
    holm,
    identity_bootstrap,
    paired_difference,
    paired_permutation,
    recall_at,
)

INF = np.inf
# Five queries against a gallery of five. Right items are marked in RELEVANT.
SCORES = np.array(
    [
        [0.9, 0.8, 0.7, 0.6, 0.5],  # right: first and third: ranks 1 and 3
        [0.5, 0.5, 0.5, 0.5, 0.5],  # all tied, right: the first: ranked last
        [0.1, 0.9, 0.2, 0.3, 0.8],  # right: last; second is excluded for this query
        [0.9, 0.8, 0.7, 0.6, -INF],  # right: last, whose face was not detected
        [0.9, 0.8, 0.7, 0.6, -INF],  # right: second and last: found at rank 2, the other never
    ]
)
RELEVANT = np.array(
    [
        [1, 0, 1, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1],
        [0, 1, 0, 0, 1],
    ],
    dtype=bool,
)
EXCLUDED = np.zeros((5, 5), dtype=bool)
EXCLUDED[2, 1] = True


def test_ranks_by_hand():
    assert first_right_rank(SCORES, RELEVANT, EXCLUDED).tolist() == [1, 5, 1, NEVER, 2]


def test_excluding_matters():
    assert first_right_rank(SCORES, RELEVANT)[2] == 2


def test_average_precision_by_hand():
    # (1/1 + 2/3) / 2;  1/5;  1;  0;  (1/2 + 0) / 2
    expected = [5 / 6, 1 / 5, 1.0, 0.0, 1 / 4]
    np.testing.assert_allclose(average_precision(SCORES, RELEVANT, EXCLUDED), expected)


def test_recall_by_hand():
    ranks = first_right_rank(SCORES, RELEVANT, EXCLUDED)
    assert recall_at(ranks, 1).mean() == pytest.approx(2 / 5)
    assert recall_at(ranks, 2).mean() == pytest.approx(3 / 5)
    assert recall_at(ranks, 5).mean() == pytest.approx(4 / 5)
    assert recall_at(ranks, 10**6).mean() == pytest.approx(4 / 5)  # the undetected one stays a miss


def test_ties_between_right_items_are_harmless():
    scores, relevant = np.array([[0.5, 0.5, 0.1]]), np.array([[True, True, False]])
    assert first_right_rank(scores, relevant).tolist() == [1]
    assert average_precision(scores, relevant).tolist() == [1.0]


def test_rounding_noise_is_a_tie():
    scores, relevant = np.array([[0.5 + 1e-8, 0.5]]), np.array([[True, False]])
    assert first_right_rank(scores, relevant).tolist() == [2]
    assert average_precision(scores, relevant).tolist() == [0.5]
    at_the_limit = np.array([[TIE_TOLERANCE, 0.0]])
    assert first_right_rank(at_the_limit, np.array([[True, False]])).tolist() == [2]


def test_average_precision_equals_the_definition_on_random_scores():
    rng = np.random.default_rng(0)
    scores, relevant = rng.random((20, 30)), rng.random((20, 30)) < 0.2
    expected = []
    for row, right in zip(scores, relevant, strict=True):
        ordered = right[np.argsort(-row)]
        precision = np.cumsum(ordered) / np.arange(1, 31)
        expected.append(precision[ordered].mean() if right.any() else 0.0)
    np.testing.assert_allclose(average_precision(scores, relevant), expected)


def test_undetected_gallery_items_are_not_counted_before_the_right_one():
    scores, relevant = np.array([[-INF, 0.1]]), np.array([[False, True]])
    assert first_right_rank(scores, relevant).tolist() == [1]


def test_nan_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"^scores .*NaN"):
        first_right_rank(np.array([[0.5, np.nan]]), np.array([[True, False]]))
    with pytest.raises(ValueError, match=r"scores \(5, 5\), relevant \(5, 3\)"):
        average_precision(SCORES, RELEVANT[:, :3])


def test_bootstrap_of_equal_values_has_no_width():
    estimate = identity_bootstrap(np.ones(6), np.array([0, 0, 1, 1, 2, 2]))
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)
    assert (estimate.count, estimate.identities) == (6, 3)


def test_bootstrap_draws_people_not_queries():
    # Two people, one always right, one always wrong: a draw of two people has mean 0, 1/2 or 1 with chance
    # 1/4, 1/2, 1/4, so the 95 % interval is everything, however many queries each of them has.
    identities = np.repeat([0, 1], 500)
    estimate = identity_bootstrap((identities == 0).astype(float), identities)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


def test_bootstrap_interval_matches_the_normal_one():
    rng = np.random.default_rng(1)
    values = (rng.random(2000) < 0.3).astype(float)
    estimate = identity_bootstrap(values, np.arange(2000))
    half = 1.96 * np.sqrt(0.3 * 0.7 / 2000)
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.08)
    assert identity_bootstrap(values, np.arange(2000)) == estimate  # same seed, same interval


def test_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(2)
    first = rng.random(400)
    difference = paired_difference(first + 0.01, first, np.arange(400))
    assert difference.low == pytest.approx(0.01) and difference.high == pytest.approx(0.01)


def test_empty_group_gives_nan_not_zero():
    nothing = identity_bootstrap(np.empty(0), np.empty(0, int))
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert (nothing.count, nothing.identities) == (0, 0)


def test_permutation_p_value_of_two_persons_by_hand():
    # Differences of persons: +1 and +1. Of the four sign patterns two are as extreme, p = 1/2.
    p = paired_permutation(np.array([1.0, 1.0]), np.zeros(2), np.array([0, 1]), resamples=4000)
    assert p == pytest.approx(0.5, abs=0.03)
    assert paired_permutation(np.zeros(2), np.array([1.0, 1.0]), np.array([0, 1]), resamples=4000) == p
    assert np.isnan(paired_permutation(np.zeros(0), np.zeros(0), np.zeros(0, int)))


def test_permutations_are_counted_once_however_many_are_drawn_at_a_time(monkeypatch):
    monkeypatch.setattr("faceclip.statistics.DRAWS_AT_ONCE", 14)  # seven resamples of two persons at a time
    assert paired_permutation(np.zeros(2), np.zeros(2), np.array([0, 1]), resamples=100) == 1.0


def test_persons_are_permuted_and_not_their_pictures():
    rng = np.random.default_rng(0)
    persons = np.repeat(np.arange(6), 50)
    first = np.repeat([1.0, 1, 1, 1, 1, -1], 50) + rng.normal(size=300) * 0.01
    assert paired_permutation(first, np.zeros(300), persons) > 0.1
    assert paired_permutation(first, np.zeros(300), np.arange(300)) < 0.001


@pytest.mark.parametrize("at_once", [1, 14, 10**6])
def test_intervals_do_not_depend_on_how_many_draws_are_made_at_a_time(monkeypatch, at_once):
    values, people = np.random.default_rng(3).random(40), np.arange(40) % 4
    wanted = identity_bootstrap(values, people, resamples=10, seed=5)
    p = paired_permutation(values, np.full(40, 0.5), people, resamples=10, seed=5)
    monkeypatch.setattr("faceclip.statistics.DRAWS_AT_ONCE", at_once)
    assert identity_bootstrap(values, people, resamples=10, seed=5) == wanted
    assert paired_permutation(values, np.full(40, 0.5), people, resamples=10, seed=5) == p


def test_usual_numbers_of_draws_and_their_seed():
    values, people = np.random.default_rng(3).random(40), np.arange(40) % 8
    usual = identity_bootstrap(values, people)
    assert usual == identity_bootstrap(values, people, resamples=2000, seed=0, confidence=0.95)
    assert usual != identity_bootstrap(values, people, resamples=2001)
    assert usual != identity_bootstrap(values, people, seed=1)
    narrow = identity_bootstrap(values, people, confidence=0.5)
    assert usual.low < narrow.low < usual.value < narrow.high < usual.high
    p = paired_permutation(values, np.full(40, 0.5), people)
    assert p == paired_permutation(values, np.full(40, 0.5), people, resamples=4000, seed=0)
    assert p != paired_permutation(values, np.full(40, 0.5), people, seed=1)


def test_values_and_identities_of_other_shapes_are_refused():
    for shape, people in (((3,), 4), ((3, 1), 3), ((2, 2), 4)):
        for figure in (identity_bootstrap, lambda values, who: paired_permutation(values, values, who)):
            with pytest.raises(ValueError, match=r"^values .* identities "):
                figure(np.ones(shape), np.arange(people).reshape(-1 if people == 4 else shape))
    square = np.arange(4).reshape(2, 2)
    with pytest.raises(ValueError, match=r"^values \(2, 2\)"):
        paired_permutation(np.ones((2, 2)), np.ones((2, 2)), square)
    with pytest.raises(ValueError, match=r"^values \(2, 2\)"):
        identity_bootstrap(np.ones((2, 2)), square)


def test_holm_adjusts_in_steps():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, np.nan])), [0.03, 0.06, 0.06, np.nan])
    np.testing.assert_allclose(holm(np.array([0.9, 0.5])), [1, 1])
