"""Reads batches ahead: while a step computes with one batch, a thread reads the next."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Prefetcher:
    """Calls `read(position)` for one position after another in a thread, one position ahead.

    `read` must depend on its position alone, so that the thread changes when a batch is read but not its content. Use
    it as a context; leaving the context waits for a read that has begun.
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
        """Returns the batch at `position` and begins to read `following` (None after the last batch).

        Raises the error that reading this batch raised.
        """
        ahead, self._ahead = self._ahead, None
        begun = ahead[1] if ahead and ahead[0] == position else self._thread.submit(self._read, position)
        batch = begun.result()
        if following is not None:
            self._ahead = following, self._thread.submit(self._read, following)
        return batch
