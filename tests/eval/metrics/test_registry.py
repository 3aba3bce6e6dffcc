"""Registry and docs/metrics.md say the same, and names are versioned."""

import re
from pathlib import Path

import pytest

from eval.metrics.registry import FAMILIES, METRICS, find, table
from faceclip.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_has_exactly_the_rows_of_the_registry():
    text = PAGE.read_text()
    rows = text[text.index("<!-- registry -->") : text.index("<!-- end of registry -->")].strip().splitlines()[1:]
    assert rows == table().splitlines()


def test_every_name_has_a_version_and_every_family_a_metric():
    assert all(re.fullmatch(r"[a-z0-9_/]+@[a-z0-9-]+", name) for name in METRICS)
    assert {metric.family for metric in METRICS.values()} == set(FAMILIES)


def test_an_unknown_metric_is_refused_with_those_that_begin_alike():
    with pytest.raises(ConfigError, match=r"facesim/all@2.*facesim/all@1"):
        find("facesim/all@2")
    assert find("fid@1").better == "lower"
