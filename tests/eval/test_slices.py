"""Figures by groups: bins, "too few", gaps."""

import numpy as np
import pytest

from eval.slices import bins, group_difference, light_side, sliced, to_json
from faceclip.face3d.light import directional_light


def test_bins_are_of_absolute_values_and_keep_their_order():
    labels = bins(np.array([-50.0, 3, 15, 44.9, np.nan]), (15, 30, 45), "°")
    assert labels.tolist() == ["45° and more", "0–15°", "15–30°", "30–45°", "unknown"]
    found = sliced(np.ones(5), np.arange(5), labels, few=1)
    assert [part.label for part in found.slices] == ["0–15°", "15–30°", "30–45°", "45° and more", "unknown"]


def test_a_small_group_has_no_value_and_no_part_in_the_gap():
    values = np.r_[np.full(30, 1.0), np.full(30, 3.0), np.full(29, 100.0), np.nan]
    labels = np.array(["a"] * 30 + ["b"] * 30 + ["c"] * 30)
    found = sliced(values, np.arange(90) // 3, labels)
    assert [part.count for part in found.slices] == [30, 30, 29]
    assert found.slices[2].estimate is None and found.slices[2].people == 10
    assert (found.gap.high, found.gap.low) == ("b", "a") and found.gap.difference.value == pytest.approx(2)
    content = to_json({"letter": found})
    assert content["letter"]["groups"]["c"]["value"] == "too few"
    assert content["letter"]["largest gap"]["difference"]["value"] == pytest.approx(2)
    assert sliced(values[:30], np.arange(30), labels[:30]).gap is None


def test_the_interval_of_a_gap_is_over_persons():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(40), 10)
    values = rng.normal(size=40)[person] + 0.01 * rng.normal(size=400)
    first = person < 20
    found = group_difference(values, person, first, ~first)
    width = found.high - found.low
    assert width > 0.8  # persons differ by 1: about 4 · √(2 / 20); ten pictures of each say nothing new
    assert found.low < values[first].mean() - values[~first].mean() < found.high and found.identities == 40


def test_light_comes_from_a_side():
    lights = np.stack([directional_light((x, 0.0, 1.0), (1.0, 1.0, 1.0)) for x in (-2.0, 0.1, 2.0)])
    assert light_side(lights).tolist() == ["left", "front", "right"]
