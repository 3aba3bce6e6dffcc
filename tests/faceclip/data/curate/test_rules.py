"""Thresholds on stored figures."""

import math

import numpy as np
import pyarrow as pa
import pytest

from faceclip.data.curate.rules import (
    KeepConfig,
    active_rules,
    overlaps,
    parse_rule,
    rank_bits,
    reason_bits,
    reason_names,
)
from faceclip.errors import ConfigError

TABLE = pa.table(
    {
        "reason": ["", "", "", "unreadable_image"],
        "side": [100, 200, 128, None],
        "sharpness": pa.array([0.5, 0.0001, None, None], pa.float32()),
        "nsfw": pa.array([0.1, 0.2, 0.9, None], pa.float32()),
    }
)


def test_rows_are_dropped_by_what_is_beyond_a_bound_and_not_by_what_is_missing():
    rules = active_rules(KeepConfig(rules=("nsfw <= 0.5",)), TABLE.schema)
    names, bits = reason_names(rules), reason_bits(rules, TABLE)
    dropped = [{name for number, name in enumerate(names) if row >> number & 1} for row in bits.tolist()]
    assert dropped == [{"small"}, {"blurred"}, {"nsfw<=0.5"}, {"unmeasured"}]


def test_null_switches_a_rule_off():
    assert [rule.name for rule in active_rules(KeepConfig(min_side=None), TABLE.schema)] == ["blurred"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"max_text": 0.5}, "keep.max_text"),  # asked for and not measured
        ({"duplicates": 2}, "keep.duplicates"),
        ({"face_duplicates": 2}, "keep.face_duplicates"),
        ({"top": 2}, "keep.top"),
        ({"rules": ("beauty>=1",)}, "'beauty'"),
        ({"rules": ("reason>=1",)}, "side"),  # which figures there are
    ],
)
def test_rules_that_cannot_be_applied(words, named):
    keep = KeepConfig(**words)
    table = TABLE.append_column("points", pa.array([[1.0]] * 4))
    with pytest.raises(ConfigError, match=named):
        active_rules(keep, table.schema)


@pytest.mark.parametrize("text", ["nsfw", "nsfw<0.5", "nsfw<=high", "<=1", "a b<=1", "nsfw<=nan", "nsfw>=-inf"])
def test_texts_that_are_no_rule(text):
    with pytest.raises(ConfigError, match=r"keep\.rules"):
        parse_rule(text)


@pytest.mark.parametrize(
    "words", [{"duplicates": 20}, {"face_duplicates": -1}, {"top": -1}, {"min_side": math.nan}, {"max_text": math.inf}]
)
def test_bounds_out_of_range(words):
    with pytest.raises(ConfigError, match=f"keep.{next(iter(words))}"):
        KeepConfig(**words)


def test_the_largest_are_kept_and_earlier_rows_win():
    dropped, pixels = np.array([False, True, False, False, False]), np.array([5.0, 9, 7, 5, 1])
    assert rank_bits(dropped, pixels, 2).tolist() == [False, False, False, True, True]
    assert not rank_bits(dropped, pixels, 0).any()


def test_overlaps_count_pairs_of_rules():
    overlap = overlaps(["a", "b"], np.array([0b01, 0b11, 0b10, 0b10, 0]))
    assert overlap.counts.tolist() == [[2, 1], [1, 3]] and overlap.alone.tolist() == [1, 2]
