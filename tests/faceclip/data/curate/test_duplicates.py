"""Near-duplicates among hashes: the same answer as by comparing all pairs."""

import numpy as np
import pytest

from faceclip.data.curate.duplicates import repeated


def by_all_pairs(hashes: np.ndarray, rank: np.ndarray, distance: int) -> set[int]:
    kept: list[int] = []
    for row in np.argsort(rank):
        near = [int(hashes[row] ^ hashes[other]) & (1 << 64) - 1 for other in kept]
        if all(bits.bit_count() > distance for bits in near):
            kept.append(int(row))
    return set(range(len(hashes))) - set(kept)


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
def test_the_same_rows_as_by_all_pairs(distance):
    random = np.random.default_rng(distance)
    base = random.integers(-(2**63), 2**63 - 1, 60)
    hashes = np.concatenate([base, base[:20], np.zeros(10, np.int64)])
    for row in range(60, 80):
        for bit in random.integers(0, 64, int(random.integers(0, 9))):
            hashes[row] ^= np.int64(-(2**63) if bit == 63 else 1 << bit)
    rank = random.permutation(len(hashes))
    found = repeated(hashes, rank, distance)
    assert set(found) == by_all_pairs(hashes, rank, distance)
    assert len(found) >= 9
    for row, other in found.items():
        assert rank[other] < rank[row] and other not in found
        assert (int(hashes[row] ^ hashes[other]) & (1 << 64) - 1).bit_count() <= distance


def test_a_chain_does_not_fall_together():
    chain = np.array([0b0, 0b11, 0b1111, 0b111111], np.int64)  # each two bits from the next
    assert repeated(chain, np.arange(4), 2) == {1: 0, 3: 2}


def test_nothing_among_none_and_one():
    assert repeated(np.zeros(0, np.int64), np.zeros(0, np.int64), 4) == {}
    assert repeated(np.ones(1, np.int64), np.zeros(1, np.int64), 4) == {}


def test_a_hundred_thousand_hashes_of_one_value_and_as_many_random_ones():
    random = np.random.default_rng(0)
    hashes = np.concatenate([np.zeros(100_000, np.int64), random.integers(-(2**63), 2**63 - 1, 100_000)])
    assert len(repeated(hashes, np.arange(200_000), 4)) == 99_999
