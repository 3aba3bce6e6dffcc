"""The interface that every data set gives to its portraits, and the persons whom they show."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from faceclip.data.mapping import DataConfig
from faceclip.data.records import Caption
from faceclip.errors import DataError
from faceclip.storage.shards import ShardedArray


class Portraits(Protocol):
    """N portraits of one split: renders and imported photos (`faceclip.data.arrays.FaceArrays`), or rows of any other
    data (`faceclip.data.recorded.RecordedPortraits`)."""

    @property
    def identity(self) -> NDArray[np.int64]:
        """(N,) numbers that are equal for pictures of one person."""

    @property
    def names(self) -> Sequence[str]:
        """The person whom each portrait shows, in the words of the data."""

    @property
    def captions(self) -> Sequence[Sequence[Caption]]:
        """The captions of each portrait, with the spans of their phrases where these are known."""

    @property
    def caption_start(self) -> NDArray[np.int64]:
        """(N + 1,) caption c of portrait i is number `caption_start[i] + c` of all M captions."""

    @property
    def words(self) -> NDArray[np.int64]:
        """(M,) numbers that are equal for equal captions."""

    @property
    def content_hash(self) -> str:
        """Hash of the pictures and of everything that the data says about them."""

    @property
    def landmarks_5(self) -> NDArray[np.float32] | None:
        """(N, 5, 2) px of the stored pictures; None where no pictures are stored."""

    @property
    def regions(self) -> NDArray[np.uint8] | ShardedArray | None:
        """(N, S, S) labels of `records.REGIONS`; None where nobody knows them."""

    @property
    def masks(self) -> NDArray[np.uint8] | ShardedArray | None:
        """(N, S, S, 3) masks that rows gave to words, as bits of `faceclip.data.masks`; None where they gave none."""

    @property
    def shading(self) -> NDArray[np.uint8] | ShardedArray | None:
        """(N, S, S, 3) lit grey geometry of the true or fitted head; None where there is none."""

    @property
    def attributes(self) -> Mapping[str, NDArray[np.int64]]:
        """Name → (N,) classes; empty where nobody knows them."""

    @property
    def seen_values(self) -> Mapping[str, NDArray[np.str_]]:
        """What the pictures show of their attributes, as words (N,): "" where a value cannot be seen."""

    def __len__(self) -> int: ...


def number_captions(captions: Sequence[Sequence[Caption]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`caption_start` (N + 1,) and `words` (M,) of captions, words being numbered as they first appear."""
    numbers: dict[str, int] = {}
    words = [numbers.setdefault(caption.text, len(numbers)) for row in captions for caption in row]
    return np.cumsum([0] + [len(row) for row in captions]), np.asarray(words)


class People:
    """The rows of each identity, identities in ascending order, rows too; few arrays, however many persons.

    `people[i]`: the rows (K,) of person i; counts (P,): how many; person (N,): the person of each row.
    """

    def __init__(self, identity: NDArray[np.int64]) -> None:
        self.order = np.argsort(identity, kind="stable")
        borders = np.flatnonzero(np.diff(identity[self.order])) + 1
        self.starts = np.concatenate([[0], borders, [len(identity)]])
        self.counts = np.diff(self.starts)
        self.person = np.empty(len(identity), np.int64)
        self.person[self.order] = np.repeat(np.arange(len(self.counts)), self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, person: int) -> NDArray[np.int64]:
        return self.order[self.starts[person] : self.starts[person + 1]]

    def others(self, row: int) -> NDArray[np.int64]:
        """The other rows of the person whom a row shows."""
        rows = self[self.person[row]]
        return rows[rows != row]

    def with_fewer(self, pictures: int) -> NDArray[np.int64]:
        """The first row of each person who has fewer pictures than that."""
        return self.order[self.starts[:-1][self.counts < pictures]]


def check_pairs(path: str, identity: NDArray[np.int64], remedy: str = "give more") -> None:
    """Raises DataError unless a person of the validation split has two pictures."""
    if len(np.unique(identity)) == len(identity):
        raise DataError(
            f"data.path={path}: no person of the validation split has two pictures, so nothing can be "
            f"asked for; {remedy}"
        )


def check_divided(data: DataConfig, train: Portraits, validation: Portraits) -> None:
    """`check_apart` for the splits of `data`, unless its persons are not known (identity=none: the numbers of rows are
    equal by accident) or both splits are one on purpose. Raises DataError."""
    if data.identity == "column" and data.validation != data.train:
        check_apart(train, validation)


def check_apart(train: Portraits, validation: Portraits) -> None:
    """Raises DataError for a person of both splits: figures would then measure people that were trained on."""
    ours = np.asarray(validation.identity)
    both = np.flatnonzero(np.isin(ours, train.identity))
    if len(both):
        raise DataError(
            f"{len(np.unique(ours[both])):,} persons are in the training and in the validation split (as "
            f"{validation.names[both[0]]}): divide the data by persons, or set data.validation_share=0.05 instead"
        )
