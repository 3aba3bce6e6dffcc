"""What is known of the portraits of a gallery, and which of them a description fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays
from faceclip.data.records import Caption
from faceclip.errors import DataError, EmptyDatasetError


@dataclass(frozen=True, kw_only=True)
class Description:
    """A caption and the attribute values it names, such as {"hair_color": "red"}; nobody knows what one of kind "free"
    names."""

    text: str
    kind: str
    names: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The captions of N portraits as numbers: words (M,), equal for equal captions; `words[start[i] + c]` is caption c
    of portrait i, start (N + 1,)."""

    words: NDArray[np.int64]
    start: NDArray[np.int64]

    def same(self, row: int, number: int) -> NDArray[np.int64]:
        """The portraits that have caption `number` of portrait `row` too, in order."""
        equal = np.flatnonzero(self.words == self.words[self.start[row] + number])
        return np.unique(np.searchsorted(self.start, equal, side="right") - 1)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of N portraits. `index` counts within the person, 0 is the frontal portrait (None: not known);
    `numbered`: the captions as numbers, where somebody has them already.

    Raises EmptyDatasetError without a portrait, DataError for columns of unequal length.
    """

    identity: NDArray[np.int64]
    index: NDArray[np.int64] | None = None
    attributes: Mapping[str, NDArray[np.str_]]
    descriptions: Sequence[Sequence[Description]]
    numbered: Wording | None = None

    def __post_init__(self) -> None:
        count = len(self.identity)
        if count == 0:
            raise EmptyDatasetError("the test split has no portraits: generate data with a test share above 0")
        for name, values in {"index": self.index, **self.attributes}.items():
            if values is not None and len(values) != count:
                raise DataError(f"column {name} has {len(values)} rows, identity has {count}")
        if len(self.descriptions) != count:
            raise DataError(f"{len(self.descriptions)} rows of captions for {count} portraits")

    def __len__(self) -> int:
        return len(self.identity)

    @cached_property
    def _people(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows in the order of persons, where each person's begin, and each portrait's person."""
        _, person = np.unique(self.identity, return_inverse=True)
        order = np.argsort(person, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(person))])
        return order, start, person

    def same_person(self, row: int) -> NDArray[np.int64]:
        """Rows of all portraits of the person of portrait `row`, itself among them, in order."""
        order, start, person = self._people
        return order[start[person[row]] : start[person[row] + 1]]

    @cached_property
    def wording(self) -> Wording:
        """The captions as numbers."""
        if self.numbered is not None:
            return self.numbered
        numbers: dict[str, int] = {}
        words = [[numbers.setdefault(item.text, len(numbers)) for item in row] for row in self.descriptions]
        start = np.cumsum([0, *map(len, words)])
        return Wording(words=np.array([number for row in words for number in row], np.int64), start=start)


class Descriptions(Sequence[Sequence[Description]]):
    """Captions with the values that they name: of each portrait's own `values`, looked up when they are asked for."""

    def __init__(
        self, captions: Sequence[Sequence[Caption]], values: Mapping[str, NDArray[np.str_]] | None = None
    ) -> None:
        self.captions, self.values = captions, values or {}

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int) -> list[Description]:  # type: ignore[override]  # one row at a time
        return [
            Description(
                text=caption.text,
                kind=caption.kind,
                names={name: str(self.values[name][row]) for name in caption.named},
            )
            for caption in self.captions[row]
        ]


def labels_of(arrays: FaceArrays) -> Labels:
    """Identity, attributes as words ("" where they cannot be seen), and captions with the values they name.

    Of photos nobody says which picture of a person is the frontal one: it is the one whose fitted yaw and pitch are
    least.
    """
    descriptions = Descriptions(arrays.captions, arrays.seen_values)
    return Labels(
        identity=np.asarray(arrays.identity),
        index=np.asarray(arrays.index) if not arrays.are_photos else _by_turn(arrays),
        attributes=arrays.seen_values,
        descriptions=[descriptions[row] for row in range(len(descriptions))],
        numbered=Wording(words=arrays.words, start=arrays.caption_start),
    )


def matches(labels: Labels, names: Mapping[str, str]) -> NDArray[np.bool_]:
    """Portraits (N,) that have every attribute value a description names."""
    fits = np.ones(len(labels), dtype=bool)
    for name, value in names.items():
        if name not in labels.attributes:
            raise DataError(f"a caption names the attribute {name!r}, the data has {sorted(labels.attributes)}")
        fits &= labels.attributes[name] == value
    return fits


def fitting(labels: Labels, row: int, number: int) -> NDArray[np.bool_]:
    """Portraits (N,), whomever they show, that description `number` of portrait `row` fits: they have what it names or,
    if that is unknown, are described by the same words."""
    description = labels.descriptions[row][number]
    if description.kind == "free":
        fits = np.zeros(len(labels), dtype=bool)
        fits[labels.wording.same(row, number)] = True
        return fits
    return matches(labels, description.names)


def fits_among(labels: Labels, row: int, number: int, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """`fitting` of some portraits (K,) alone, at a cost that does not grow with the others."""
    description = labels.descriptions[row][number]
    if description.kind == "free":
        words, start = labels.wording.words, labels.wording.start
        word = words[start[row] + number]
        return np.array([bool((words[start[other] : start[other + 1]] == word).any()) for other in rows], dtype=bool)
    fits = np.ones(len(rows), dtype=bool)
    for name, value in description.names.items():
        if name not in labels.attributes:
            raise DataError(f"a caption names the attribute {name!r}, the data has {sorted(labels.attributes)}")
        fits &= labels.attributes[name][rows] == value
    return fits


def _by_turn(arrays: FaceArrays) -> NDArray[np.int64]:
    """(N,) place of each portrait among those of its person, the least turned first."""
    turn = np.abs(np.asarray(arrays.pose)[:, :2]).sum(axis=1)
    identity, place = np.asarray(arrays.identity), np.empty(len(arrays), np.int64)
    order = np.lexsort((turn, identity))
    _, first, person = np.unique(identity[order], return_index=True, return_inverse=True)
    place[order] = np.arange(len(arrays)) - first[person]
    return place
