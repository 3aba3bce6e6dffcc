"""Keeps rows of different sizes in shards: flat values, and the end of each row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(name: str, rows: Sequence[NDArray], dtype: Any) -> dict[str, NDArray]:
    """Packs N arrays of any shapes into the fields `NAME_values` (sum of all sizes,) and `NAME_end` (N,)."""
    flat = [np.asarray(row, dtype).reshape(-1) for row in rows]
    values = np.concatenate([np.empty(0, dtype), *flat])
    return {f"{name}_values": values, f"{name}_end": np.cumsum([len(row) for row in flat], dtype=np.int64)}


@dataclass(frozen=True)
class RaggedRows:
    """Rows of shards that `pack` made, each read from its memory map on access.

    shards: the fields of each shard. rows (N,): numbers among all rows of all shards.
    """

    shards: Sequence[dict[str, NDArray]]
    name: str
    rows: NDArray[np.int64]
    _starts: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts = [len(shard[f"{self.name}_end"]) for shard in self.shards]
        object.__setattr__(self, "_starts", np.cumsum([0, *counts]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> NDArray:
        """Returns a view of the flat values (size,) of one row."""
        row = int(self.rows[index])
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        fields, number = self.shards[shard], row - int(self._starts[shard])
        ends = fields[f"{self.name}_end"]
        begin = int(ends[number - 1]) if number else 0
        return fields[f"{self.name}_values"][begin : int(ends[number])]
