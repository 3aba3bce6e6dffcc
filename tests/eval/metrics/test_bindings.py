"""Leakage of a colour from one region to another, on pictures whose regions have known colours."""

import numpy as np
import pytest

from eval.metrics.bindings import COLOURS, asked_colours, binding, movement, region_colours

MASK = np.zeros((1, 10, 10), int)
MASK[0, :, 5:] = 1
MASK[0, 0, 0] = 2  # too small a region


def painted(left, right):
    image = np.empty((1, 10, 10, 3), np.uint8)
    image[0, :, :5], image[0, :, 5:] = left, right
    return image


def test_a_colour_that_stays_where_it_was_asked_for_does_not_leak():
    base = region_colours(painted((120, 120, 120), (90, 90, 90)), MASK, 3)
    assert np.isnan(base[0, 2]).all()
    drawn = region_colours(painted(COLOURS["red"], (90, 90, 90)), MASK, 3)
    moved = movement(drawn, base, asked_colours(["red"]))
    np.testing.assert_allclose(moved[0, :2], [1, 0], atol=0.02)
    found = binding(moved, np.array([0]))
    assert found.bound[0] == pytest.approx(1, abs=0.02) and found.leaked[0] == pytest.approx(0, abs=0.02)


def test_a_colour_in_the_wrong_region_leaks():
    base = region_colours(painted((120, 120, 120), (90, 90, 90)), MASK, 2)
    drawn = region_colours(painted((120, 120, 120), COLOURS["blue"]), MASK, 2)
    found = binding(movement(drawn, base, asked_colours(["blue"])), np.array([0]))
    assert found.bound[0] == pytest.approx(0, abs=0.02) and found.leaked[0] == pytest.approx(1, abs=0.02)
    assert found.table[0, 1] == pytest.approx(1, abs=0.02) and np.isnan(found.table[1]).all()


def test_a_region_that_had_the_colour_says_nothing():
    red = region_colours(painted(COLOURS["red"], (90, 90, 90)), MASK, 2)
    assert np.isnan(movement(red, red, asked_colours(["red"]))[0, 0])
