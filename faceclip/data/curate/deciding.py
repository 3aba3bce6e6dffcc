"""Decides which rows are kept: first by rules on each shard, then by duplicates and rank over the whole set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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
    hashes_asked,
    numbers,
    rank_bits,
    reason_bits,
    reason_names,
)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The reasons why each of N rows is dropped. Rows are in the order of splits, shards and rows.

    bits (N,): bit i is set if `names[i]` drops the row; 0 means that the row is kept. instead: for each near-duplicate
    the place of the row that is kept in its stead, unless `keep.top` drops that row too. ranges: the places of each
    shard's rows in `bits`, by (split, shard number).
    """

    names: list[str]
    rules: list[Rule]
    bits: NDArray[np.int64]
    instead: dict[int, int]
    ranges: dict[tuple[str, int], range]

    @property
    def kept(self) -> NDArray[np.bool_]:
        return self.bits == 0

    def places(self, split: str, number: int) -> range:
        """Returns the places of a shard's rows in `bits`."""
        return self.ranges[split, number]

    @cached_property
    def _begins(self) -> list[tuple[int, str]]:
        """The first place of each split in `bits`, in order."""
        return [(places.start, split) for (split, number), places in self.ranges.items() if number == 0]

    def row(self, place: int) -> tuple[str, int]:
        """Returns the split and row number of a place in `bits`. The rows of a split are consecutive there."""
        begin, split = next(found for found in reversed(self._begins) if found[0] <= place)
        return split, place - begin

    def counts(self) -> dict[str, int]:
        """Returns how many rows each rule drops, including those that other rules drop too."""
        return {name: int(((self.bits >> number) & 1).sum()) for number, name in enumerate(self.names)}

    def reasons(self, row: int) -> list[str]:
        """Returns the names of all rules that drop the row at this place."""
        return [name for number, name in enumerate(self.names) if self.bits[row] >> number & 1]


def decide(splits: Sequence[Shards], schema: pa.Schema, keep: KeepConfig) -> Decision:
    """Applies the rules to the figures of all shards. It needs about 40 bytes of memory per row.

    Raises ConfigError if a rule needs a figure that was not measured.
    """
    rules = active_rules(keep, schema)
    names = reason_names(rules)
    needed = ["reason", *dict.fromkeys(rule.column for rule in rules)]
    pixel_column = [name for name in ("pixels",) if name in schema.names]
    hash_columns = {name: bits for name, bits in hashes_asked(keep).items() if name in schema.names}
    needed += [name for name in (*pixel_column, *hash_columns) if name not in needed]
    bits, pixels, count = [], [], 0
    ranges: dict[tuple[str, int], range] = {}
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
            ranges[shards.split, number] = range(count, count + len(table))
            count += len(table)
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
    return Decision(names=names, rules=rules, bits=whole, instead=_ends(instead), ranges=ranges)


def _ends(instead: Mapping[int, int]) -> dict[int, int]:
    """Follows chains: if the row kept in place of another is itself a duplicate, its own stand-in is named."""
    found = {}
    for row, other in instead.items():
        while other in instead:
            other = instead[other]
        found[row] = other
    return found
