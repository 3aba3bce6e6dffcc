"""Finds pairs of pictures that show the same person but are not the same photo, by the cosine of their embeddings."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from faceclip.data.curate.config import PairsConfig
from faceclip.data.curate.deciding import Decision
from faceclip.data.curate.measuring import Shards

STRANGERS = 100_000  # pairs of rows that are drawn to estimate the lower bound
PASSING = 1e-3  # share of the pairs of different people that reaches the lower bound
LIKEST = 0.01  # share of the pairs of the same person that reaches the upper bound
_COLUMNS = {
    "split": pa.string(),
    "person": pa.string(),
    "first": pa.int64(),
    "second": pa.int64(),
    "cosine": pa.float32(),
}
_SCHEMA = pa.schema(list(_COLUMNS.items()))


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs found.

    table: split, person, the two row numbers and the cosine of each pair. low, high: the bounds of the cosine. below,
    above: how many pairs of the same person lie outside of them.
    """

    table: pa.Table
    low: float
    high: float
    below: int
    above: int


def find_pairs(splits: Sequence[Shards], decision: Decision, config: PairsConfig) -> Pairs | None:
    """Returns the pairs among the kept rows of each split whose person is known; None if no person has two."""
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    numbers: list[int] = []
    vectors: list[NDArray[np.float32]] = []
    for shards in splits:
        for number in range(shards.count):
            table = shards.table(number, ["row", "person", "embedding"])
            places = decision.places(shards.split, number)
            columns = (table["row"].to_pylist(), table["person"].to_pylist(), table["embedding"].to_pylist())
            for place, row, person, embedding in zip(places, *columns, strict=True):
                if person and embedding is not None and decision.bits[place] == 0:
                    rows[shards.split, person].append(len(vectors))
                    vectors.append(np.asarray(embedding, np.float32))
                    numbers.append(row)
    several = {who: found for who, found in rows.items() if len(found) > 1}
    if not several:
        return None
    whole = np.stack(vectors)
    owners = np.zeros(len(whole), np.int64)
    people: dict[str, int] = {}
    for (_, person), found in rows.items():
        owners[found] = people.setdefault(person, len(people))  # a person keeps one number across splits
    first, second, who = [], [], []
    for (split, person), found in several.items():
        for one, other in islice(combinations(found, 2), config.per_person):
            first.append(one)
            second.append(other)
            who.append((split, person))
    cosines = np.sum(whole[first] * whole[second], axis=1)
    low = config.low if config.low is not None else _strangers(whole, owners)
    high = config.high if config.high is not None else float(np.quantile(cosines, 1 - LIKEST))
    inside = (cosines >= low) & (cosines < high)
    lines = [
        {
            "split": who[index][0],
            "person": who[index][1],
            "first": numbers[first[index]],
            "second": numbers[second[index]],
            "cosine": float(cosines[index]),
        }
        for index in np.flatnonzero(inside)
    ]
    return Pairs(
        table=pa.Table.from_pylist(lines, schema=_SCHEMA),
        low=low,
        high=high,
        below=int((cosines < low).sum()),
        above=int((cosines >= high).sum()),
    )


def _strangers(vectors: NDArray[np.float32], owners: NDArray[np.int64]) -> float:
    """Estimates the cosine that a share `PASSING` of the pairs of different people reaches; −1 if there is one person.

    vectors (N, D): embeddings of length 1. owners (N,): number of the person.
    """
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, len(vectors), (2, STRANGERS))
    apart = owners[one] != owners[other]
    if not apart.any():
        return -1.0
    return float(np.quantile(np.sum(vectors[one[apart]] * vectors[other[apart]], axis=1), 1 - PASSING))
