"""Open-set and verification figures worked out by hand."""

import numpy as np
import pytest

from eval.retrieval.open_set import (
    acceptance_rates,
    best_threshold,
    error_tradeoff,
    fold_accuracy,
    identification_rates,
    threshold_at,
)
from faceclip.errors import EmptyDatasetError

IMPOSTORS = np.arange(100) / 100  # 0 … .99


def test_thresholds_accept_at_most_the_share_of_impostors():
    limit = threshold_at(IMPOSTORS, 0.1)
    assert (limit <= IMPOSTORS).sum() == 10 and limit == pytest.approx(0.9, abs=0.01)
    assert (threshold_at(IMPOSTORS, 0.01) <= IMPOSTORS).sum() == 1
    assert np.isnan(threshold_at(IMPOSTORS, 0.001))  # a hundred cannot tell one in a thousand
    equal = np.ones(50)
    assert (threshold_at(equal, 0.1) <= equal).sum() == 0  # five of fifty equal ones cannot be picked


def test_acceptance_of_genuine_pairs():
    genuine = np.array([0.95, 0.895, 0.5, -np.inf])
    rates = acceptance_rates(genuine, IMPOSTORS)
    assert [rate.at for rate in rates] == [0.1, 0.01, 0.001]
    assert rates[0].value == 0.5 and rates[1].value == 0 and np.isnan(rates[2].value)
    with pytest.raises(EmptyDatasetError, match="pairs"):
        acceptance_rates(genuine[:0], IMPOSTORS)


def test_a_known_probe_must_be_first_and_above_the_threshold():
    known, first = np.array([0.95, 0.99, 0.5, -np.inf]), np.array([True, False, True, True])
    rates = identification_rates(known, first, IMPOSTORS)
    assert rates[0].value == 0.25
    with pytest.raises(EmptyDatasetError, match="outside"):
        identification_rates(known, first, IMPOSTORS[:0])


def test_the_trade_off_goes_from_strict_to_lenient():
    accepted, rejected = error_tradeoff(np.array([0.8, 0.9, 1.0]), np.array([0.1, 0.2, 0.85]))
    assert accepted[0] == 0 and accepted[-1] == 1 and rejected[-1] == 0
    assert (np.diff(accepted) >= 0).all() and (np.diff(rejected) <= 0).all()


def test_the_threshold_of_a_fold_comes_from_the_others():
    # Fold 0 is separable at .5, fold 1 at .7: each is judged by the other's threshold.
    scores = np.array([0.6, 0.6, 0.4, 0.4, 0.8, 0.8, 0.6, 0.6])
    same = np.array([True, True, False, False] * 2)
    found = fold_accuracy(scores, same, np.repeat([0, 1], 4))
    assert found.folds == (0.5, 0.5) and found.mean == 0.5 and found.error == 0
    with pytest.raises(EmptyDatasetError, match="two folds"):
        fold_accuracy(scores, same, np.zeros(8, int))


def test_failed_pairs_are_judged_two_people():
    scores = np.array([0.9, -np.inf, 0.1, -np.inf] * 2)
    same = np.array([True, True, False, False] * 2)
    found = fold_accuracy(scores, same, np.repeat([0, 1], 4))
    assert found.folds == (0.75, 0.75) and found.failed == 4


def test_the_best_threshold_lies_between_scores():
    assert best_threshold(np.array([0.9, 0.2]), np.array([True, False])) == pytest.approx(0.55)
    assert best_threshold(np.array([0.9, 0.2]), np.array([True, True])) == pytest.approx(0.2)
    assert best_threshold(np.array([0.9, 0.2]), np.array([False, False])) > 0.9
