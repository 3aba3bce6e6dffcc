"""Figures over photos of people, with intervals from drawing whole people."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from faceclip.statistics import Estimate

RESAMPLES = 200
Statistic = Callable[[NDArray[np.int64]], float]


def by_people(statistic: Statistic, people: NDArray[np.integer], *, resamples: int = RESAMPLES) -> Estimate:
    """A statistic of rows and its 95 % percentile interval when whole people are drawn with replacement (Efron 1979).

    statistic: of row numbers, of which some may come more than once.
    """
    people = np.asarray(people)
    names = np.unique(people)
    rows = [np.flatnonzero(people == name) for name in names]
    random = np.random.default_rng(0)
    drawn = [
        statistic(np.concatenate([rows[one] for one in random.integers(0, len(names), len(names))]))
        for _ in range(resamples)
    ]
    finite = np.array([value for value in drawn if np.isfinite(value)])
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (float("nan"), float("nan"))
    value = statistic(np.arange(len(people)))
    return Estimate(value=float(value), low=float(low), high=float(high), count=len(people), identities=len(names))


def pairs(
    scores: NDArray[np.floating], people: NDArray[np.integer], rows: NDArray[np.int64]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Scores of all pairs of different rows, and which are of one person; scores (N, N)."""
    first, second = np.triu_indices(len(rows), 1)
    first, second = rows[first], rows[second]
    different = first != second
    first, second = first[different], second[different]
    return scores[first, second], people[first] == people[second]


def area(scores: NDArray[np.floating], same: NDArray[np.bool_]) -> float:
    """Share of pairs of one person and pairs of two in which the first score higher; ties count half."""
    right, wrong = np.sort(scores[same]), np.sort(scores[~same])
    if not len(right) or not len(wrong):
        return float("nan")
    below = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return float(below.mean() / 2 / len(wrong))


def accepted(scores: NDArray[np.floating], same: NDArray[np.bool_], false_rate: float) -> float:
    """Share of pairs of one person above the threshold that `false_rate` of the pairs of two people reach."""
    right, wrong = scores[same], scores[~same]
    if not len(right) or len(wrong) * false_rate < 1:
        return float("nan")
    return float((right > np.quantile(wrong, 1 - false_rate)).mean())


def one_shot(
    scores: NDArray[np.floating], people: NDArray[np.integer], first: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """Whether each photo that is not its person's `first` is nearest to the first photo of its own person; and whose
    photos these are. A tie is a miss."""
    gallery, probes = np.flatnonzero(first), np.flatnonzero(~first)
    probes = probes[np.isin(people[probes], people[gallery])]
    table = scores[np.ix_(probes, gallery)]
    own = people[probes][:, None] == people[gallery][None]
    right, wrong = np.where(own, table, -np.inf).max(axis=1), np.where(own, -np.inf, table).max(axis=1)
    return (right > wrong).astype(np.float64), people[probes]
