"""Statistics over photos of people, with bootstrap intervals that resample whole people."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from faceclip.statistics import Estimate

RESAMPLES = 200
Statistic = Callable[[NDArray[np.int64]], float]


def by_people(statistic: Statistic, people: NDArray[np.integer]) -> Estimate:
    """Returns a statistic of rows with its 95 % percentile interval, from people drawn with replacement (Efron 1979).

    statistic: function of row numbers (M,), which may repeat. people (N,): the person of each row. The interval is NaN
    if no resample gives a finite value.
    """
    people = np.asarray(people)
    names = np.unique(people)
    rows = [np.flatnonzero(people == name) for name in names]
    random = np.random.default_rng(0)
    drawn = [
        statistic(np.concatenate([rows[one] for one in random.integers(0, len(names), len(names))]))
        for _ in range(RESAMPLES)
    ]
    finite = np.array([value for value in drawn if np.isfinite(value)])
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (float("nan"), float("nan"))
    value = statistic(np.arange(len(people)))
    return Estimate(value=float(value), low=float(low), high=float(high), count=len(people), identities=len(names))


def pairs(
    scores: NDArray[np.floating], people: NDArray[np.integer], rows: NDArray[np.int64]
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Returns the scores (P,) of all pairs of different rows, and whether each pair shows the same person (P,).

    scores (N, N). people (N,). rows (M,): the rows to pair; pairs of a row with itself are left out.
    """
    first, second = np.triu_indices(len(rows), 1)
    first, second = rows[first], rows[second]
    different = first != second
    first, second = first[different], second[different]
    return scores[first, second], people[first] == people[second]


def area(scores: NDArray[np.floating], same: NDArray[np.bool_]) -> float:
    """Returns the area under the ROC curve: how often a pair of the same person scores higher than one of different
    people.

    scores, same (P,). Ties count half. NaN if there are no pairs of either kind.
    """
    right, wrong = np.sort(scores[same]), np.sort(scores[~same])
    if not len(right) or not len(wrong):
        return float("nan")
    below = np.searchsorted(wrong, right, side="left") + np.searchsorted(wrong, right, side="right")
    return float(below.mean() / 2 / len(wrong))


def accepted(scores: NDArray[np.floating], same: NDArray[np.bool_], false_rate: float) -> float:
    """Returns the share of pairs of the same person above the threshold that a share `false_rate` of the other pairs
    reaches.

    scores, same (P,). NaN if `false_rate` stands for less than one pair.
    """
    right, wrong = scores[same], scores[~same]
    if not len(right) or len(wrong) * false_rate < 1:
        return float("nan")
    return float((right > np.quantile(wrong, 1 - false_rate)).mean())


def one_shot(
    scores: NDArray[np.floating], people: NDArray[np.integer], first: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """Identifies each probe among the first photos of all people.

    scores (N, N), people (N,), first (N,): whether a photo is its person's first one. Returns for every other photo 1.0
    if the first photo of its own person scores highest (a tie is a miss), and the person.
    """
    gallery, probes = np.flatnonzero(first), np.flatnonzero(~first)
    probes = probes[np.isin(people[probes], people[gallery])]
    table = scores[np.ix_(probes, gallery)]
    own = people[probes][:, None] == people[gallery][None]
    right, wrong = np.where(own, table, -np.inf).max(axis=1), np.where(own, -np.inf, table).max(axis=1)
    return (right > wrong).astype(np.float64), people[probes]
