"""Finds near-duplicates among the 64-bit hashes of all pictures, and decides which row of each group is kept.

Two hashes that differ in at most `distance` bits are equal in at least one of `distance` + 1 bands of bits. Rows are
therefore sorted by each band in turn, and only rows with an equal band are compared.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_COMPARED = 1 << 22  # pairs compared at once: 32 MiB


def repeated(hashes: NDArray[np.int64], rank: NDArray[np.int64], distance: int) -> dict[int, int]:
    """Returns the rows to drop, each with the row that is kept in its place.

    hashes (N,): 64 bits each, as signed integers. rank (N,): a permutation, 0 for the best row. Rows are visited from
    the best to the worst, and a row is dropped if its hash differs in at most `distance` bits from that of a better
    row that is kept. A chain of pictures that each resemble only the next is therefore not reduced to one picture.
    """
    order = np.lexsort((rank, hashes))
    ordered = hashes[order]
    first = np.ones(len(order), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    unique = order[first]  # the best row of each hash
    better, worse = _near(hashes[unique].view(np.uint64), rank[unique], distance)
    instead: dict[int, int] = {}
    for index in np.lexsort((rank[unique[better]], rank[unique[worse]])).tolist():
        kept, other = int(unique[better[index]]), int(unique[worse[index]])
        if kept not in instead and other not in instead:
            instead[other] = kept
    leaders = unique[np.cumsum(first) - 1] if len(order) else unique
    for leader, row in zip(leaders[~first].tolist(), order[~first].tolist(), strict=True):
        instead[row] = instead.get(leader, leader)
    return instead


def _near(
    values: NDArray[np.uint64], rank: NDArray[np.int64], distance: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the pairs (better, worse), as indices, of unequal hashes that differ in at most `distance` bits."""
    pairs = [np.zeros((2, 0), np.int64)]
    for low, high in _bands(distance + 1) if distance and len(values) > 1 else ():
        band = (values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        for left, right in _same(band):
            near = np.bitwise_count(values[left] ^ values[right]) <= distance
            found = np.stack([left[near], right[near]])
            swap = rank[found[0]] > rank[found[1]]
            found[:, swap] = found[::-1, swap]
            pairs.append(found)
    better, worse = np.unique(np.concatenate(pairs, axis=1), axis=1)  # several bands find the same pair
    return better, worse


def _bands(count: int) -> Iterator[tuple[int, int]]:
    edges = np.linspace(0, 64, count + 1).round().astype(int).tolist()
    yield from pairwise(edges)


def _same(band: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields all pairs of positions with equal values, in pieces of about `_COMPARED` pairs."""
    order = np.argsort(band, kind="stable")
    ordered = band[order]
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    # For the row at each sorted position: how many rows with its value come after it.
    after = np.repeat(edges[1:], np.diff(edges)) - np.arange(len(order)) - 1
    start = 0
    total = np.concatenate([[0], np.cumsum(after)])
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(total, total[start] + _COMPARED, side="right")) - 1)
        counts = after[start:stop]
        left = np.repeat(np.arange(start, stop), counts)
        within = np.arange(len(left)) - np.repeat(total[start:stop] - total[start], counts)
        yield order[left], order[left + 1 + within]
        start = stop
