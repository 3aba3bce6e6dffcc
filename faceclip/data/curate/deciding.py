"""Which rows are kept: rules on the figures of each shard, then what only the whole set can tell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from faceclip.data.curate.duplicates import repeated
from faceclip.data.curate.measuring import Shards
from faceclip.data.curate.rules import (
    DUPLICATE,
    RANK,
    KeepConfig,
    Rule,
    active_rules,
    numbers,
    rank_bits,
    reason_bits,
    reason_names,
)
from faceclip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Decision:
    """bits (N,): why each row is dropped, one bit per name, in the order of splits, shards and rows; 0: it is kept.
    instead: the row that stands for a near-duplicate. starts: the first row of every shard, then N; shards: split and
    number of each."""

    names: list[str]
    rules: list[Rule]
    bits: NDArray[np.int64]
    instead: dict[int, int]
    starts: list[int]
    shards: list[tuple[str, int]]

    @property
    def kept(self) -> NDArray[np.bool_]:
        return self.bits == 0

    def places(self, split: str, number: int) -> range:
        """Where the rows of a shard stand in `bits`."""
        shard = self.shards.index((split, number))
        return range(self.starts[shard], self.starts[shard + 1])

    def where(self, place: int) -> tuple[str, int, int]:
        """Split and number of the shard that a row is in, and which row of it."""
        shard = int(np.searchsorted(self.starts, place, side="right")) - 1
        return *self.shards[shard], place - self.starts[shard]

    def counts(self) -> dict[str, int]:
        """Rows that each rule drops, those that others drop too among them."""
        return {name: int(((self.bits >> number) & 1).sum()) for number, name in enumerate(self.names)}

    def reasons(self, row: int) -> list[str]:
        """Names of all that drops a row."""
        return [name for number, name in enumerate(self.names) if self.bits[row] >> number & 1]


def decide(splits: Sequence[Shards], schema: pa.Schema, keep: KeepConfig) -> Decision:
    """Applies the rules to the figures of all shards. In memory are some 40 bytes per row, never a table of them all.

    Raises ConfigError for rules on figures that were not measured.
    """
    rules = active_rules(keep, schema)
    names = reason_names(rules)
    if keep.top and "pixels" not in schema.names:
        raise ConfigError("keep.top: add size to measures=, which counts the pixels")
    needed = ["reason", *dict.fromkeys(rule.column for rule in rules)]
    pixel_column = [name for name in ("pixels",) if name in schema.names]
    hash_columns = _hash_columns(keep, schema)
    needed += [name for name in (*pixel_column, *hash_columns) if name not in needed]
    bits, pixels, starts, known = [], [], [0], []
    hashes: dict[str, list[NDArray]] = {name: [] for name in hash_columns}
    present: dict[str, list[NDArray]] = {name: [] for name in hash_columns}
    for shards in splits:
        for number in range(shards.count):
            table = shards.table(number, needed)
            bits.append(reason_bits(rules, table))
            pixels.append(numbers(table, "pixels") if pixel_column else np.zeros(len(table)))
            for name in hash_columns:
                hashes[name].append(table[name].fill_null(0).to_numpy())
                present[name].append(table[name].is_valid().to_numpy())
            starts.append(starts[-1] + len(table))
            known.append((shards.split, number))
    whole = np.concatenate(bits)
    size = np.concatenate(pixels)
    instead: dict[int, int] = {}
    for name, distance in hash_columns.items():
        candidates = np.flatnonzero((whole == 0) & np.concatenate(present[name]))
        best = np.argsort(-size[candidates], kind="stable")  # the most pixels first, then the earliest row
        rank = np.empty(len(candidates), np.int64)
        rank[best] = np.arange(len(candidates))
        found = repeated(np.concatenate(hashes[name])[candidates].astype(np.int64), rank, distance)
        for row, other in found.items():
            instead[int(candidates[row])] = int(candidates[other])
        whole[candidates[list(found)]] |= np.int64(1 << names.index(DUPLICATE))
    whole |= np.int64(1 << names.index(RANK)) * rank_bits(whole != 0, size, keep.top)
    return Decision(names=names, rules=rules, bits=whole, instead=instead, starts=starts, shards=known)


def _hash_columns(keep: KeepConfig, schema: pa.Schema) -> dict[str, int]:
    """Columns of hashes by which duplicates are found, and how many bits may differ."""
    asked = {"hash": keep.duplicates, "face_hash": keep.face_duplicates}
    return {name: bits for name, bits in asked.items() if bits is not None and name in schema.names}
