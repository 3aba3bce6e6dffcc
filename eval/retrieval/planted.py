"""Embeddings of people who do not exist, as many as are asked for, to measure search in large galleries."""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from eval.retrieval.search import unit
from faceclip.errors import ConfigError

PEOPLE_AT_ONCE = 16_384


@dataclass(frozen=True, kw_only=True)
class Planted:
    """index: flat, of G unit vectors. label: (G,) person of each. queries: (Q, D) further vectors of some of the
    persons, asked: (Q,) which."""

    index: Any
    label: NDArray[np.int64]
    queries: NDArray[np.float32]
    asked: NDArray[np.int64]


def plant(
    gallery: int, queries: int, *, width: int = 512, each: int = 4, likeness: float = 0.45, seed: int = 0
) -> Planted:
    """Returns `each` vectors per person around a random direction, whose mean cosine to each other is `likeness`.

    Vectors go into the index block by block, so that nothing but the index is as large as the gallery. Raises
    ConfigError for sizes that do not go together.
    """
    if min(gallery, queries, each) < 1 or width < 8:
        raise ConfigError(
            "gallery, queries and per_person must be at least 1 and width at least 8, got "
            f"{gallery}, {queries}, {each}, {width}"
        )
    if not 0 < likeness < 1:
        raise ConfigError(f"likeness must lie between 0 and 1, got {likeness}")
    people = -(-gallery // each)
    label = np.repeat(np.arange(people), each)[:gallery]
    asked = np.linspace(0, people - 1, queries).round().astype(np.int64)
    spread = np.sqrt((1 / likeness - 1) / width)  # the cosine of two vectors is 1 / (1 + spread² · width)
    index = faiss.IndexFlatIP(width)
    found = np.empty((queries, width), np.float32)
    for start in range(0, people, PEOPLE_AT_ONCE):
        generator = np.random.default_rng([seed, 41, start])
        count = min(PEOPLE_AT_ONCE, people - start)
        centre = unit(generator.standard_normal((count, width), dtype=np.float32))
        rows = label[(label >= start) & (label < start + count)] - start
        noise = generator.standard_normal((len(rows), width), dtype=np.float32) * np.float32(spread)
        index.add(unit(centre[rows] + noise))
        here = np.flatnonzero((asked >= start) & (asked < start + count))
        noise = generator.standard_normal((len(here), width), dtype=np.float32) * np.float32(spread)
        found[here] = unit(centre[asked[here] - start] + noise)
    return Planted(index=index, label=label, queries=found, asked=asked)
