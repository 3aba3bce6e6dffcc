"""The interface of the portraits of every data set, and their persons."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

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
        """Numbers (N,) that are equal for pictures of the same person."""

    @property
    def names(self) -> Sequence[str]:
        """The person in each portrait, as the data name it."""

    @property
    def captions(self) -> Sequence[Sequence[Caption]]:
        """The captions of each portrait, with the spans of their phrases if these are known."""

    @property
    def caption_start(self) -> NDArray[np.int64]:
        """Numbers (N + 1,): caption c of portrait i is number `caption_start[i] + c` of all M captions."""

    @property
    def words(self) -> NDArray[np.int64]:
        """Numbers (M,) that are equal for equal captions."""

    @property
    def content_hash(self) -> str:
        """Hash of the pictures and of all that the data say about them."""

    @property
    def landmarks_5(self) -> NDArray[np.float32] | None:
        """Landmarks (N, 5, 2) in px of the stored pictures; None if no pictures are stored."""

    @property
    def regions(self) -> NDArray[np.uint8] | ShardedArray | None:
        """Labels (N, S, S) of `records.REGIONS`; None if they are not known."""

    @property
    def masks(self) -> NDArray[np.uint8] | ShardedArray | None:
        """Masks (N, S, S, 3) of words, as bits of `faceclip.data.masks`; None if the rows have none."""

    @property
    def shading(self) -> NDArray[np.uint8] | ShardedArray | None:
        """Shading maps (N, S, S, 3) of the true or fitted head; None if there are none."""

    @property
    def attributes(self) -> Mapping[str, NDArray[np.int64]]:
        """Classes (N,) by attribute; empty if they are not known."""

    @property
    def seen_values(self) -> Mapping[str, NDArray[np.str_]]:
        """The visible values of each attribute as words (N,): "" if a value cannot be seen."""

    def __len__(self) -> int: ...


def number_captions(captions: Sequence[Sequence[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns `caption_start` (N + 1,) and `words` (M,) of captions, or whatever has a `text`; words are numbered as
    they first appear."""
    numbers: dict[str, int] = {}
    words = [numbers.setdefault(caption.text, len(numbers)) for row in captions for caption in row]
    return np.cumsum([0] + [len(row) for row in captions]), np.asarray(words, np.int64)


class People:
    """The rows of each identity, kept in a few arrays for any number of persons. Identities and rows are in ascending
    order.

    people[i]: the rows (K,) of person i. counts (P,): their numbers. person (N,): the person of each row.
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
        """Returns the other rows of a row's person."""
        rows = self[self.person[row]]
        return rows[rows != row]

    def with_fewer(self, pictures: int) -> NDArray[np.int64]:
        """Returns the first row of each person who has fewer than this number of pictures."""
        return self.order[self.starts[:-1][self.counts < pictures]]


def check_pairs(path: str, identity: NDArray[np.int64], remedy: str = "give more") -> None:
    """Raises DataError unless some person of the validation split has two pictures."""
    if len(np.unique(identity)) == len(identity):
        raise DataError(
            f"data.path={path}: no person of the validation split has two pictures, so nothing can be "
            f"asked for; {remedy}"
        )


def check_divided(data: DataConfig, train: Portraits, validation: Portraits) -> None:
    """Runs `check_apart` for the splits of `data`. Raises DataError.

    Nothing is checked if persons are not known (with identity=none, equal numbers mean nothing) or if both splits are
    the same on purpose.
    """
    if data.identity == "column" and data.validation != data.train:
        check_apart(train, validation)


def check_apart(train: Portraits, validation: Portraits) -> None:
    """Raises DataError if a person is in both splits, because figures would then measure people of the training."""
    ours = np.asarray(validation.identity)
    both = np.flatnonzero(np.isin(ours, train.identity))
    if len(both):
        raise DataError(
            f"{len(np.unique(ours[both])):,} persons are in the training and in the validation split (as "
            f"{validation.names[both[0]]}): divide the data by persons, or set data.validation_share=0.05 instead"
        )
