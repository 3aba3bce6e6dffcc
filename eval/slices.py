"""A figure by groups of pictures: bins of yaw, pitch, face size and light, and groups of people; the largest gap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faceclip.statistics import Estimate, identity_bootstrap

FEW = 30
"""Pictures below which a slice's mean is not shown."""

RESAMPLES = 2000
"""Draws for the interval of a difference between groups."""

YAW_EDGES = (15.0, 30.0, 45.0)
PITCH_EDGES = (10.0, 20.0)
SIZE_EDGES = (0.25, 0.4, 0.55)  # width of the face as a share of the picture's
TOO_FEW = "too few"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A group's mean with its interval; `estimate` is None where there are fewer than `FEW` pictures. count, people:
    how many there are."""

    label: str
    count: int
    people: int
    estimate: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The groups with the largest and the smallest mean, and the difference with its interval."""

    high: str
    low: str
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class Sliced:
    """A figure by the groups of one kind, and the largest gap between two groups with enough pictures."""

    slices: tuple[Slice, ...]
    gap: Gap | None


def bins(values: NDArray[np.floating], edges: Sequence[float], unit: str = "") -> NDArray[np.str_]:
    """Returns labels (N,) such as "15–30°" of absolute values; "unknown" for NaN."""
    values = np.abs(np.asarray(values, np.float64))
    bounds = [0.0, *edges]
    names = [f"{low:g}–{high:g}{unit}" for low, high in zip(bounds, edges, strict=False)]
    names.append(f"{bounds[-1]:g}{unit} and more")
    place = np.digitize(np.nan_to_num(values), edges)
    return np.where(np.isnan(values), "unknown", np.array(names)[place])


def light_side(light: NDArray[np.floating]) -> NDArray[np.str_]:
    """Returns where the light (N, 9, 3) or (N, 27) comes from, seen by the viewer: left, right or front.

    Coefficients 1 … 3 of a spherical-harmonic light are its gradient along y, z and x.
    """
    gradient = np.asarray(light, np.float64).reshape(len(light), 9, 3).mean(axis=2)[:, 1:4]
    x, z = gradient[:, 2], np.abs(gradient[:, 1])
    return np.where(x > 0.5 * z, "right", np.where(x < -0.5 * z, "left", "front"))


def sliced(
    values: NDArray[np.floating], identity: NDArray[np.integer], labels: NDArray[np.str_], *, few: int = FEW
) -> Sliced:
    """Returns a figure (N,) by label; NaN values are left out."""
    values = np.asarray(values, np.float64)
    known = ~np.isnan(values)
    values, identity, labels = values[known], np.asarray(identity)[known], np.asarray(labels)[known]
    slices = []
    for label in _in_order(labels):
        here = labels == label
        count = int(here.sum())
        estimate = identity_bootstrap(values[here], identity[here]) if count >= few else None
        people = len(np.unique(identity[here]))
        slices.append(Slice(label=str(label), count=count, people=people, estimate=estimate))
    enough = [part for part in slices if part.estimate is not None and part.label != "unknown"]
    if len(enough) < 2:
        return Sliced(slices=tuple(slices), gap=None)
    ranked = sorted(enough, key=lambda part: part.estimate.value if part.estimate else 0.0)
    low, high = ranked[0].label, ranked[-1].label
    difference = group_difference(values, identity, labels == high, labels == low)
    return Sliced(slices=tuple(slices), gap=Gap(high=high, low=low, difference=difference))


def group_difference(
    values: NDArray[np.floating],
    identity: NDArray[np.integer],
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
) -> Estimate:
    """Returns the mean over `first` minus that over `second`, with the 95 % interval over persons drawn with
    replacement.

    values, identity (N,); first, second (N,): the rows of either group. A person may have pictures in both groups (yaw)
    or in one (skin tone); draws that lack one of the groups do not count. The groups were chosen as the extremes, so a
    difference of 0 is unlikely by construction.
    """
    values = np.asarray(values, np.float64)
    _, group = np.unique(identity, return_inverse=True)
    people = int(group.max()) + 1
    sums = [np.bincount(group[rows], weights=values[rows], minlength=people) for rows in (first, second)]
    counts = [np.bincount(group[rows], minlength=people) for rows in (first, second)]
    drawn = np.random.default_rng(0).integers(0, people, size=(RESAMPLES, people))
    means = []
    for total, count in zip(sums, counts, strict=True):
        number = count[drawn].sum(axis=1)
        means.append(np.where(number > 0, total[drawn].sum(axis=1) / np.maximum(number, 1), np.nan))
    found = means[0] - means[1]
    low, high = np.nanquantile(found, [0.025, 0.975])
    value = float(values[first].mean() - values[second].mean())
    used = first | second
    return Estimate(
        value=value,
        low=float(low),
        high=float(high),
        count=int(used.sum()),
        identities=len(np.unique(np.asarray(identity)[used])),
    )


def to_json(found: Mapping[str, Sliced]) -> dict:
    """Returns kinds of slices → groups as plain JSON values."""
    content: dict = {}
    for kind, part in found.items():
        groups = {
            item.label: {
                "count": item.count,
                "people": item.people,
                "value": TOO_FEW if item.estimate is None else item.estimate.to_dict(),
            }
            for item in part.slices
        }
        gap = part.gap and {"high": part.gap.high, "low": part.gap.low, "difference": part.gap.difference.to_dict()}
        content[kind] = {"groups": groups, "largest gap": gap}
    return content


def _in_order(labels: NDArray[np.str_]) -> list[str]:
    """Returns labels in the order of the number that they begin with, then by name."""

    def key(label: str) -> tuple[float, str]:
        digits = label.split("–")[0].split(" ")[0].strip("°")
        try:
            return float(digits), label
        except ValueError:
            return float("inf"), label

    return sorted({str(label) for label in labels}, key=key)
