"""Keeps rows of different sizes in shards, and texts: flat values, and the end of each row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from faceclip.storage.shards import ShardedArray


def pack(name: str, rows: Sequence[NDArray], dtype: Any) -> dict[str, NDArray]:
    """Packs N arrays of any shapes into the fields `NAME_values` (sum of all sizes,) and `NAME_end` (N,)."""
    flat = [np.asarray(row, dtype).reshape(-1) for row in rows]
    values = np.concatenate([np.empty(0, dtype), *flat])
    return {f"{name}_values": values, f"{name}_end": np.cumsum([len(row) for row in flat], dtype=np.int64)}


def pack_texts(name: str, texts: Sequence[str]) -> dict[str, NDArray]:
    """Packs texts as UTF-8: fields `NAME_text` (bytes,) and `NAME_end` (count,), the end of each text."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {f"{name}_text": np.frombuffer(b"".join(encoded), np.uint8), f"{name}_end": ends}


def unpack_texts(name: str, shard: Mapping[str, NDArray]) -> list[str]:
    """Returns the texts that `pack_texts` packed."""
    return list(RaggedTexts([shard], name, np.arange(len(shard[f"{name}_end"]))))


@dataclass(frozen=True)
class RaggedRows:
    """Rows of shards that `pack` made, each read from its memory map on access.

    shards: the fields of each shard. rows (N,): numbers among all rows of all shards.
    """

    shards: Sequence[Mapping[str, NDArray]]
    name: str
    rows: NDArray[np.int64]
    _starts: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    kind: ClassVar[str] = "values"

    def __post_init__(self) -> None:
        counts = [len(shard[f"{self.name}_end"]) for shard in self.shards]
        object.__setattr__(self, "_starts", np.cumsum([0, *counts]))

    @classmethod
    def of(cls, fields: Mapping[str, ShardedArray], name: str) -> Self:
        """Returns all rows that were packed under this name into the fields of several shards."""
        names = (f"{name}_{cls.kind}", f"{name}_end")
        shards = [dict(zip(names, part, strict=True)) for part in zip(*(fields[n].parts for n in names), strict=True)]
        return cls(shards, name, np.arange(len(fields[names[1]])))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """Returns a view of the flat values (size,) of one row."""
        row = int(self.rows[index])
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        fields, number = self.shards[shard], row - int(self._starts[shard])
        ends = fields[f"{self.name}_end"]
        begin = int(ends[number - 1]) if number else 0
        return fields[f"{self.name}_{self.kind}"][begin : int(ends[number])]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


class RaggedTexts(RaggedRows, Sequence[str]):
    """Texts of shards that `pack_texts` made, each decoded on access, so that millions of them stay on disk."""

    kind = "text"

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # one text at a time
        return super().__getitem__(index).tobytes().decode()
