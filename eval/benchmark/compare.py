"""Figures of all methods: means with intervals over persons, the leader beyond chance, categories, slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eval.benchmark.measure import Measured, SetFigure, metric_of
from eval.benchmark.suite import Suite
from eval.metrics.registry import FAMILIES, METRICS
from eval.slices import PITCH_EDGES, SIZE_EDGES, YAW_EDGES, Sliced, bins, light_side, sliced
from faceclip.statistics import Estimate, holm, identity_bootstrap, paired_difference, paired_permutation

SLICED = ("facesim/all@1", "detection@1", "clip_t/l14@1", "clip_t/shipped@1", "prompt/judge@1")
LEVEL = 0.05  # of the permutation tests, after Holm's correction over all of them


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The method that leads a column minus another one, on the pictures that both have; p after Holm's correction."""

    column: str
    leader: str
    other: str
    estimate: Estimate
    p: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """figures: method → column → mean with interval. sets: method → column → figure of the whole set. best: column →
    the method that leads it beyond chance, where there is one. categories: method → category → column → mean. slices:
    method → column → kind of slice."""

    columns: tuple[str, ...]
    figures: Mapping[str, Mapping[str, Estimate]]
    sets: Mapping[str, Mapping[str, SetFigure]]
    best: Mapping[str, str]
    differences: tuple[Difference, ...]
    categories: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    slices: Mapping[str, Mapping[str, Mapping[str, Sliced]]]


def compare(suite: Suite, measured: Mapping[str, Measured], contenders: Sequence[str]) -> Comparison:
    """Compares `contenders`, the methods that compete; calibration rows have figures and never lead."""
    person = persons(suite)
    columns = tuple(dict.fromkeys(name for found in measured.values() for name in found.values))
    order = {metric: place for place, metric in enumerate(METRICS)}

    def place(name: str) -> tuple[int, str, int]:
        metric = metric_of(name)
        return FAMILIES.index(METRICS[metric].family), name.removeprefix(metric), order[metric]

    columns = tuple(sorted(columns, key=place))
    figures = {
        method: {name: aggregate(name, values, person) for name, values in found.values.items()}
        for method, found in measured.items()
    }
    differences = _differences(measured, figures, contenders, columns, person)
    best = {}
    for name in columns:
        here = [difference for difference in differences if difference.column == name]
        if here and all(difference.p < LEVEL for difference in here):
            best[name] = here[0].leader
    return Comparison(
        columns=columns,
        figures=figures,
        sets={method: found.sets for method, found in measured.items()},
        best=best,
        differences=tuple(differences),
        categories={method: _categories(suite, found, person) for method, found in measured.items()},
        slices={method: _slices(suite, found, person) for method, found in measured.items()},
    )


def persons(suite: Suite) -> NDArray[np.int64]:
    """Returns the number of the person of each job (N,)."""
    names = [suite.references.photos[job.reference].person for job in suite.jobs]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def aggregate(name: str, values: NDArray[np.float64], person: NDArray[np.int64]) -> Estimate:
    """Returns a column's figure as its metric aggregates: mean, root of the mean square, median or largest value."""
    known = ~np.isnan(values)
    values, person = values[known], person[known]
    metric = metric_of(name)
    if metric.startswith("pose_rmse/"):
        square = identity_bootstrap(values**2, person)
        root = [float(np.sqrt(value)) for value in (square.value, square.low, square.high)]
        return Estimate(value=root[0], low=root[1], high=root[2], count=square.count, identities=square.identities)
    if metric.startswith("cost/") and len(values):
        value = float(np.median(values) if metric == "cost/seconds@1" else values.max())
        low, high = (float(v) for v in np.quantile(values, [0.025, 0.975]))
        return Estimate(
            value=value, low=low, high=max(high, value), count=len(values), identities=len(np.unique(person))
        )
    return identity_bootstrap(values, person)


def _differences(
    measured: Mapping[str, Measured],
    figures: Mapping[str, Mapping[str, Estimate]],
    contenders: Sequence[str],
    columns: Sequence[str],
    person: NDArray[np.int64],
) -> list[Difference]:
    """Returns the leader of each column against every other contender, on the pictures that both have."""
    found: list[Difference] = []
    for name in columns:
        better = METRICS[metric_of(name)].better
        have = [m for m in contenders if name in figures[m] and not np.isnan(figures[m][name].value)]
        if better == "neither" or len(have) < 2 or metric_of(name).startswith("cost/"):
            continue
        sign = 1 if better == "higher" else -1
        leader = max(have, key=lambda method: sign * figures[method][name].value)
        for other in have:
            if other == leader:
                continue
            first, second = (measured[method].values[name] for method in (leader, other))
            both = ~np.isnan(first) & ~np.isnan(second)
            pair = first[both], second[both]
            estimate = paired_difference(*pair, person[both])
            p = paired_permutation(*pair, person[both])
            found.append(Difference(column=name, leader=leader, other=other, estimate=estimate, p=p))
    adjusted = holm(np.array([difference.p for difference in found]))
    return [replace(difference, p=float(p)) for difference, p in zip(found, adjusted, strict=True)]


def _categories(suite: Suite, found: Measured, person: NDArray[np.int64]) -> dict[str, dict[str, Estimate]]:
    names = np.array([suite.prompts[job.prompt].category for job in suite.jobs])
    result: dict[str, dict[str, Estimate]] = {}
    for category in dict.fromkeys(name for name in names if name):
        here = names == category
        result[str(category)] = {
            name: aggregate(name, np.where(here, values, np.nan), person) for name, values in found.values.items()
        }
    return result


def _slices(suite: Suite, found: Measured, person: NDArray[np.int64]) -> dict[str, dict[str, Sliced]]:
    labels = slice_labels(suite)
    return {
        name: {kind: sliced(values, person, names) for kind, names in labels.items()}
        for name, values in found.values.items()
        if metric_of(name) in SLICED
    }


def slice_labels(suite: Suite) -> dict[str, NDArray[np.str_]]:
    """Returns kind of slice → label of each job's reference (N,): pose and light where they are known, size of the
    face, and the groups that the user gave."""
    photos = [suite.references.photos[job.reference] for job in suite.jobs]
    share = np.array([photo.width / photo.image.shape[1] for photo in photos])
    labels = {"face width, share of the picture": bins(share, SIZE_EDGES)}
    if any(photo.pose is not None for photo in photos):
        pose = np.stack([photo.pose if photo.pose is not None else np.full(3, np.nan) for photo in photos])
        labels["yaw"] = bins(pose[:, 0], YAW_EDGES, "°")
        labels["pitch"] = bins(pose[:, 1], PITCH_EDGES, "°")
    if all(photo.light is not None for photo in photos):
        labels["light from"] = light_side(np.stack([photo.light for photo in photos if photo.light is not None]))
    for group in sorted({name for photo in photos for name in photo.groups}):
        labels[group] = np.array([photo.groups.get(group) or "unknown" for photo in photos])
    return labels
