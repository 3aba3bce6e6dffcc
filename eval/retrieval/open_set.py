"""Open-set figures and verification: what a system answers when the person may not be in its gallery at all.

A probe whose face was not found cannot be enrolled or identified: it counts as a miss, never as a false alarm, and the
failure-to-enrol rate stands beside every figure.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faceclip.errors import EmptyDatasetError

RATES = (1e-1, 1e-2, 1e-3)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A rate at a false-alarm rate of `at`, and the threshold; NaN where fewer than 1 / at impostors cannot tell."""

    at: float
    value: float
    threshold: float


def threshold_at(impostors: NDArray[np.floating], rate: float) -> float:
    """Returns the lowest score at which at most a share `rate` of impostor scores is accepted (score ≥ threshold); NaN
    where there are fewer than 1 / rate scores."""
    scores = np.sort(np.asarray(impostors, np.float64))[::-1]
    if len(scores) * rate < 1 - 1e-9:
        return float("nan")
    allowed = int(np.floor(len(scores) * rate + 1e-9))
    if allowed >= len(scores):
        return float(scores[-1])
    return float(np.nextafter(scores[allowed], np.inf))


def identification_rates(
    known: NDArray[np.floating], first: NDArray[np.bool_], unknown: NDArray[np.floating]
) -> list[Rate]:
    """Returns DIR at FPIR, the share of known probes whose person stands first with a score at or above the threshold
    at which a share of unknown probes is answered, for each of `RATES`.

    known (K,): each known probe's best score, −inf without a face; first (K,): whether that is of the right person;
    unknown (U,): best scores of probes of people outside the gallery. Raises EmptyDatasetError without either.
    """
    if not len(known) or not len(unknown):
        raise EmptyDatasetError("open-set figures need probes of people in the gallery and of people outside it")
    return _rates(unknown, lambda limit: np.asarray(first) & (np.asarray(known) >= limit))


def acceptance_rates(genuine: NDArray[np.floating], impostors: NDArray[np.floating]) -> list[Rate]:
    """Returns TAR at FAR, the share of genuine scores at or above the threshold at which a share of impostor scores is,
    for each of `RATES`.

    Failed comparisons have −inf. Raises EmptyDatasetError without either.
    """
    if not len(genuine) or not len(impostors):
        raise EmptyDatasetError("verification needs pairs of one person and pairs of two")
    return _rates(impostors, lambda limit: np.asarray(genuine) >= limit)


def _rates(strangers: NDArray[np.floating], right: Callable[[float], NDArray[np.bool_]]) -> list[Rate]:
    found = []
    for rate in RATES:
        limit = threshold_at(strangers, rate)
        value = float("nan") if np.isnan(limit) else float(right(limit).mean())
        found.append(Rate(at=rate, value=value, threshold=limit))
    return found


def error_tradeoff(
    genuine: NDArray[np.floating], impostors: NDArray[np.floating], *, points: int = 200
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the DET curve: false acceptance and rejection rates (points,) over thresholds from strict to lenient."""
    both = np.concatenate([genuine, impostors])
    limits = np.unique(np.quantile(both[np.isfinite(both)], np.linspace(1, 0, points)))[::-1]
    accepted = np.array([(np.asarray(impostors) >= limit).mean() for limit in limits])
    rejected = np.array([(np.asarray(genuine) < limit).mean() for limit in limits])
    return accepted, rejected


@dataclass(frozen=True, kw_only=True)
class FoldAccuracy:
    """Accuracy of pairs by folds, each with the threshold that is best on the other folds; error: standard error of the
    mean over folds. failed: pairs with a photo without a face, which are judged "two people"."""

    mean: float
    error: float
    folds: tuple[float, ...]
    failed: int


def fold_accuracy(scores: NDArray[np.floating], same: NDArray[np.bool_], fold: NDArray[np.integer]) -> FoldAccuracy:
    """Measures by LFW's protocol (view 2): pairs (P,) with a score, whether they show one person, and their fold.

    Raises EmptyDatasetError for fewer than two folds.
    """
    scores, same, fold = np.asarray(scores, np.float64), np.asarray(same, bool), np.asarray(fold)
    folds = np.unique(fold)
    if len(folds) < 2:
        raise EmptyDatasetError("accuracy by folds needs two folds of pairs, ten in LFW's protocol")
    found = []
    for one in folds:
        test = fold == one
        limit = best_threshold(scores[~test], same[~test])
        found.append(float(((scores[test] >= limit) == same[test]).mean()))
    error = float(np.std(found, ddof=1) / np.sqrt(len(found)))
    return FoldAccuracy(
        mean=float(np.mean(found)), error=error, folds=tuple(found), failed=int((~np.isfinite(scores)).sum())
    )


def best_threshold(scores: NDArray[np.floating], same: NDArray[np.bool_]) -> float:
    """Returns the threshold with the highest accuracy of score ≥ threshold, midway between two scores; of equal ones
    the strictest."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked, right = np.asarray(scores, np.float64)[order], np.asarray(same, bool)[order]
    hits = np.concatenate([[0], np.cumsum(right)])
    alarms = np.concatenate([[0], np.cumsum(~right)])
    accuracy = hits + (alarms[-1] - alarms)
    # Only between different scores can a threshold lie.
    between = np.concatenate([[True], ranked[1:] < ranked[:-1], [True]])
    cut = int(np.where(between, accuracy, -1).argmax())
    if cut == 0:
        return float(np.nextafter(ranked[0], np.inf))
    if cut == len(ranked):
        return float(ranked[-1])
    low = ranked[cut] if np.isfinite(ranked[cut]) else ranked[cut - 1] - 1
    return float((ranked[cut - 1] + low) / 2)
