"""Batches read ahead: same batches, read while the caller works, errors where they belong."""

import threading
import time

import pytest

from faceclip.training.prefetch import Prefetcher


def test_the_next_batch_is_read_while_the_caller_works() -> None:
    begun = {number: threading.Event() for number in range(4)}

    def read(number: int) -> dict[str, int]:
        begun[number].set()
        return {"number": number}

    with Prefetcher(read) as batches:
        assert batches.take(0, following=1) == {"number": 0}
        assert begun[1].wait(5) and not begun[2].is_set()
        assert batches.take(1, following=None) == {"number": 1}
        time.sleep(0.05)
        assert not begun[2].is_set()  # nothing follows the last
        assert batches.take(3, following=None) == {"number": 3}  # another position than announced


def test_an_error_is_raised_by_who_wants_the_batch() -> None:
    def read(number: int) -> dict[str, int]:
        if number == 1:
            raise OSError("shard 1 is gone")
        return {"number": number}

    with Prefetcher(read) as batches:
        assert batches.take(0, following=1) == {"number": 0}
        with pytest.raises(OSError, match="shard 1 is gone"):
            batches.take(1, following=2)


def test_leaving_waits_for_the_read_that_has_begun() -> None:
    finished = []

    def read(number: int) -> dict[str, int]:
        time.sleep(0.1 * number)
        finished.append(number)
        return {}

    with Prefetcher(read) as batches:
        batches.take(0, following=1)
        time.sleep(0.02)
    assert finished == [0, 1]
