"""Worker processes: all there before they are watched, so that none escapes the clean-up after a death."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

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


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="no /proc to see processes in")
def test_workers_leave_with_a_killed_parent():
    code = (
        "import multiprocessing, os, signal; from faceclip.data.worker_pool import WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(2, print, ('ready',))\n"
        "    print(*sorted(pool.submit(os.getpid).result() for _ in range(9)), flush=True)\n"
        "    print('all', *(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("all"))
    workers = list(map(int, line.split()[1:]))
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(alive(worker) for worker in workers):
        time.sleep(0.1)
    assert not any(alive(worker) for worker in workers)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_death_is_an_error_and_leaves_nobody_behind():
    before = set(multiprocessing.active_children())
    with pytest.raises(BrokenProcessPool), WorkerPool(3, nothing) as pool:
        for job in [pool.submit(die) for _ in range(6)]:
            job.result(timeout=60)
    assert set(multiprocessing.active_children()) == before
