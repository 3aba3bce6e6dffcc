"""Scores of prompts by hand."""

import numpy as np

from eval.prompt import is_present, prompt_scores

WANTED = [{"hair_color": "red", "hat": "cap"}, {"expression": "smile", "glasses": "none"}, {"clothes": "shirt"}]
JUDGED = {
    "hair_color": ["red", "black", "black"],
    "hat": ["beanie", "none", "none"],
    "expression": ["sad", "laugh", "sad"],
    "glasses": ["none", "round", "none"],
    "beard": ["full", "full", "full"],
}


def test_scores_by_hand():
    scores = prompt_scores(WANTED, JUDGED)
    np.testing.assert_array_equal(scores["hair_color"], [1, np.nan, np.nan])
    np.testing.assert_array_equal(scores["hat"], [1, np.nan, np.nan])  # a beanie is a hat
    np.testing.assert_array_equal(scores["glasses"], [np.nan, 0, np.nan])  # asked for none, got some
    np.testing.assert_array_equal(scores["all"], [1, 0.5, np.nan])  # the third prompt names nothing judged
    np.testing.assert_array_equal(scores["smile"], [np.nan, 1, np.nan])
    assert np.isnan(scores["beard"]).all()


def test_exact_scores_demand_the_value():
    scores = prompt_scores(WANTED, JUDGED, exact=True)
    np.testing.assert_array_equal(scores["all"], [0.5, 0, np.nan])


def test_presence_rules():
    assert is_present("beard", "none", "none") and not is_present("beard", "none", "stubble")
    assert is_present("expression", "laugh", "smile") and not is_present("expression", "sad", "smile")
    assert not is_present("hair_color", "red", "blond")
