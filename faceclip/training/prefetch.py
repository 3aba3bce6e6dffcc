"""Batches read ahead: while a step computes with one, a thread gets the next."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Prefetcher:
    """`read(position)` for one position after another, the following one begun beforehand.

    `read` must depend on its position alone: then the thread changes when a batch is read, not what is in it. Use it as
    a context; leaving it waits for a read that has begun.
    """

    def __init__(self, read: Callable[[int], dict[str, Any]]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future] | None = None

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, position: int, *, following: int | None) -> dict[str, Any]:
        """The batch at `position`; `following` (None after the last) is begun. Raises what reading this one raised."""
        ahead, self._ahead = self._ahead, None
        begun = ahead[1] if ahead and ahead[0] == position else self._thread.submit(self._read, position)
        batch = begun.result()
        if following is not None:
            self._ahead = following, self._thread.submit(self._read, following)
        return batch
