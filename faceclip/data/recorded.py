"""Usable rows of any data as shards of records: the person, the captions, the picture and the place of the face."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceclip.data.mapping import DataConfig, RawRecord, kept_for_validation, text_hash
from faceclip.data.portrait_reader import FoundPortrait
from faceclip.data.portraits import People, check_pairs
from faceclip.data.records import Caption
from faceclip.errors import EmptyDatasetError
from faceclip.storage.hashes import bytes_hash
from faceclip.storage.ragged import RaggedTexts, pack_texts
from faceclip.storage.shards import ShardedArray, ShardFolder


def record_fields(good: Sequence[tuple[int, RawRecord, FoundPortrait]]) -> dict[str, NDArray]:
    """Returns the fields of a shard of records from usable rows: their numbers, records and portraits."""
    texts = [raw.captions for _, raw, _ in good]
    flat = [text for row in texts for text in row]
    fields: dict[str, NDArray] = {
        "row": np.array([number for number, _, _ in good], np.int64),
        "person": np.array([text_hash(raw.person) for _, raw, _ in good], np.int64),
        "split": np.array([text_hash(raw.split) for _, raw, _ in good], np.int64),
        "landmarks": np.array([p.landmarks for _, _, p in good], np.float32).reshape(-1, 5, 2),
        "digest": np.array([portrait.digest for _, _, portrait in good], np.int64),
        "captions": np.array([len(row) for row in texts], np.int64),
        "words": np.array([text_hash(text) for text in flat], np.int64),
    }
    return fields | pack_texts("caption", flat) | pack_texts("name", [raw.person for _, raw, _ in good])


class RecordedPortraits:
    """Rows of shards of records, as `faceclip.data.portraits.Portraits`. Texts stay on disk until they are read.

    rows (N,): numbers among all records; caption_rows (M,): those of their captions among all captions.
    """

    # Pictures are not stored, and nobody labelled them.
    landmarks_5: NDArray[np.float32] | None = None
    regions: NDArray[np.uint8] | None = None
    masks: NDArray[np.uint8] | None = None
    shading: Any = None

    def __init__(self, folder: ShardFolder, records: Mapping[str, ShardedArray], rows: NDArray[np.int64]) -> None:
        shards = [folder.read(number) for number in range(len(folder))]
        counts = records["captions"][:]
        ends = np.cumsum(counts)
        self.rows = rows
        self.attributes: dict[str, NDArray[np.int64]] = {}
        self.seen_values: dict[str, NDArray[np.str_]] = {}
        self.identity = records["person"][:][rows]
        self.pictures = records["digest"][:][rows]
        self.names = RaggedTexts(shards, "name", rows)
        self.caption_start = np.cumsum([0, *counts[rows]])
        first = (ends - counts)[rows] - self.caption_start[:-1]
        self.caption_rows = np.arange(self.caption_start[-1]) + np.repeat(first, counts[rows])
        self.captions = CaptionTexts(RaggedTexts(shards, "caption", self.caption_rows), self.caption_start)
        self.words = records["words"][:][self.caption_rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def content_hash(self) -> str:
        """Hash of the persons, pictures and captions."""
        return bytes_hash(*map(np.ascontiguousarray, (self.identity, self.pictures, self.words, self.caption_start)))


def rows_of_split(
    data: DataConfig, split: str, records: Mapping[str, ShardedArray], pictures: int, *, pairs: bool = True
) -> NDArray:
    """Returns the numbers (N,) of the records of the split "train" or "validation".

    With data.few_pictures=drop, persons of the training split with fewer than `pictures` pictures are left out. Raises
    EmptyDatasetError if no records remain, and DataError if `pairs` are needed and no person of the validation split
    has a second picture.
    """
    person = records["person"][:]
    rows = np.arange(len(person))
    if data.columns.split:
        rows = np.flatnonzero(records["split"][:] == text_hash(getattr(data, split)))
    elif data.validation_share > 0:
        kept = kept_for_validation(person, data.validation_share)
        rows = np.flatnonzero(kept if split == "validation" else ~kept)
    if split == "train" and data.few_pictures == "drop" and data.identity == "column":
        people = People(person[rows])
        enough = people.counts[people.person] >= pictures
        if not enough.all():
            print(
                f"{split}: {int((~enough).sum()):,} of {len(rows):,} pictures left out, their persons have fewer "
                f"than {pictures} pictures",
                flush=True,
            )
        rows = rows[enough]
    if not len(rows):
        raise EmptyDatasetError(
            f"data.path={data.path} has no usable row for {split}: check data.columns.split, "
            "data.validation_share and data.few_pictures"
        )
    if pairs and split == "validation" and data.identity == "column":
        check_pairs(data.path, person[rows], "give more, or set data.identity=none")
    return rows


class CaptionTexts(Sequence[list[Caption]]):
    """The captions of each row; `texts` has those of row i from `start[i]` to `start[i + 1]`."""

    def __init__(self, texts: Sequence[str], start: NDArray[np.int64]) -> None:
        self.texts, self.start = texts, start

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, row: int) -> list[Caption]:  # type: ignore[override]  # one row at a time
        row = range(len(self))[row]
        return [Caption(text=self.texts[n], kind="free") for n in range(self.start[row], self.start[row + 1])]
