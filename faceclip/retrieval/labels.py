"""Labels of the portraits of a gallery, and the portraits that a description fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays
from faceclip.data.portraits import People, Portraits, number_captions
from faceclip.data.records import Caption
from faceclip.errors import DataError, EmptyDatasetError


@dataclass(frozen=True, kw_only=True)
class Description:
    """A caption and the attribute values that it names, such as {"hair_color": "red"}; what a caption of kind "free"
    names is not known."""

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
        """Returns the portraits that also have caption `number` of portrait `row`, in order."""
        equal = np.flatnonzero(self.words == self.words[self.start[row] + number])
        return np.unique(np.searchsorted(self.start, equal, side="right") - 1)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of N portraits.

    index: number within the person, 0 for the frontal portrait; None if unknown. numbered: the captions as numbers, if
    they exist already. Raises EmptyDatasetError if there are no portraits, and DataError for columns of unequal length.
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
    def _people(self) -> People:
        return People(np.asarray(self.identity))

    def same_person(self, row: int) -> NDArray[np.int64]:
        """Returns the rows of all portraits of the person of portrait `row`, including it, in order."""
        return self._people[self._people.person[row]]

    @cached_property
    def wording(self) -> Wording:
        """The captions as numbers."""
        if self.numbered is not None:
            return self.numbered
        start, words = number_captions(self.descriptions)
        return Wording(words=words, start=start)


class Descriptions(Sequence[Sequence[Description]]):
    """Captions with the values that they name, which are looked up among the portrait's own `values` on access."""

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


def portrait_labels(portraits: Portraits) -> Labels:
    """Returns the labels of portraits of any data: identity, attributes as words ("" if they cannot be seen), and
    captions with the values that they name."""
    return Labels(
        identity=np.asarray(portraits.identity),
        attributes=portraits.seen_values,
        descriptions=Descriptions(portraits.captions, portraits.seen_values),
        numbered=Wording(words=portraits.words, start=portraits.caption_start),
    )


def labels_of(arrays: FaceArrays) -> Labels:
    """Returns `portrait_labels`, with the frontal portrait of each person.

    For photos it is not known; it is that with the smallest fitted yaw and pitch.
    """
    labels = portrait_labels(arrays)
    index = np.asarray(arrays.index) if not arrays.are_photos else _by_turn(arrays)
    return replace(labels, index=index, descriptions=list(labels.descriptions))


def matches(labels: Labels, names: Mapping[str, str], rows: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Returns which portraits (N,), or which of some `rows` (K,), have every attribute value that a description
    names."""
    fits = np.ones(len(labels) if rows is None else len(rows), dtype=bool)
    for name, value in names.items():
        if name not in labels.attributes:
            raise DataError(f"a caption names the attribute {name!r}, the data has {sorted(labels.attributes)}")
        values = labels.attributes[name]
        fits &= (values if rows is None else values[rows]) == value
    return fits


def fitting(labels: Labels, row: int, number: int) -> NDArray[np.bool_]:
    """Returns which portraits (N,), of any person, description `number` of portrait `row` fits.

    They have the values that it names; if these are unknown, they are described by the same words.
    """
    description = labels.descriptions[row][number]
    if description.kind == "free":
        fits = np.zeros(len(labels), dtype=bool)
        fits[labels.wording.same(row, number)] = True
        return fits
    return matches(labels, description.names)


def fits_among(labels: Labels, row: int, number: int, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns `fitting` for some portraits (K,), at a cost that does not depend on the number of others."""
    description = labels.descriptions[row][number]
    if description.kind == "free":
        words, start = labels.wording.words, labels.wording.start
        word = words[start[row] + number]
        return np.array([bool((words[start[other] : start[other + 1]] == word).any()) for other in rows], dtype=bool)
    return matches(labels, description.names, rows)


def _by_turn(arrays: FaceArrays) -> NDArray[np.int64]:
    """Returns the place (N,) of each portrait among those of its person, ordered by how far they are turned."""
    turn = np.abs(np.asarray(arrays.pose)[:, :2]).sum(axis=1)
    identity, place = np.asarray(arrays.identity), np.empty(len(arrays), np.int64)
    order = np.lexsort((turn, identity))
    _, first, person = np.unique(identity[order], return_index=True, return_inverse=True)
    place[order] = np.arange(len(arrays)) - first[person]
    return place
