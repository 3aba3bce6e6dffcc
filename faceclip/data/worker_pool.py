"""Worker processes, of which the death of one raises an error instead of a hang."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def usable_cores() -> int:
    """Returns the number of cores that this process may use; all of them on systems that do not say (macOS,
    Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool(ProcessPoolExecutor):
    """`ProcessPoolExecutor` of spawned processes, all started with the first job.

    Spawned, not forked: a fork copies the locks of torch's, OpenMP's and numba's threads as they happen to be.

    Started together, because CPython (3.11 to 3.14) starts spawned workers one by one as jobs arrive: one that starts
    while the death of another is being cleaned up is missed by the clean-up, which then waits for it for ever. What
    is set here is how it treats forked workers, which it starts before it begins to watch them.

    They end with this process, however it ends: a killed one cannot tell them, and they would wait for work for ever.
    """

    def __init__(
        self, workers: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
    ) -> None:
        super().__init__(
            workers,
            multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(os.getpid(), initializer, initargs),
        )
        self._safe_to_dynamically_spawn_children = False


def _start(parent: int, initializer: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
