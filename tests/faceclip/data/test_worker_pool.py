"""Worker processes: all there before they are watched, so that none escapes the clean-up after a death."""

import multiprocessing
import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest

from faceclip.data.worker_pool import WorkerPool


def nothing() -> None:
    """Initializer of the workers."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_all_workers_start_with_the_first_job():
    before = set(multiprocessing.active_children())
    with WorkerPool(3, nothing) as pool:
        pool.submit(os.getpid)
        assert len(set(multiprocessing.active_children()) - before) == 3
    assert set(multiprocessing.active_children()) == before


def test_a_death_is_an_error_and_leaves_nobody_behind():
    before = set(multiprocessing.active_children())
    with pytest.raises(BrokenProcessPool), WorkerPool(3, nothing) as pool:
        for job in [pool.submit(die) for _ in range(6)]:
            job.result(timeout=60)
    assert set(multiprocessing.active_children()) == before
