"""The description of a metric."""

from dataclasses import dataclass
from typing import Literal

Family = Literal["identity", "text", "picture", "physics", "leakage", "diversity", "cost"]
Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of docs/metrics.md.

    name: `name@version`. role: which network it needs, "" for none; see `eval.benchmark.panel`. formula: per picture
    unless it says otherwise; aggregation: from pictures to a figure. failures: what a picture without a face, or one
    that was not drawn, counts as.
    """

    name: str
    family: Family
    better: Better
    formula: str
    role: str = ""
    model: str = "none"
    crop: str = "whole picture"
    aggregation: str = "mean over pictures, interval over persons"
    failures: str = "pictures that were not drawn are left out and counted"
    source: str = "ours"
    traps: str = "–"
