"""How the threads of one process wait for each other.

By default OpenMP's threads spin at the end of each product until the slowest of them is there. Where another program
takes a core, the thread on it stands still while the others burn the time that it needs: on two cores a training beside
one other busy process can lose nine tenths of its speed. Threads that sleep lose little there, and a quarter to a third
on an idle machine (`benchmarks/busy.py`): so they sleep only where cores are busy when a command starts.
"""

import os
import time
from pathlib import Path

VARIABLE = "OMP_WAIT_POLICY"
BUSY = 0.3  # cores that other programs use; above, threads sleep
_COUNTERS = Path("/proc/stat")


def busy_cores(seconds: float = 0.1) -> float:
    """How many cores are in use while this process sleeps for so long; 0 where the system does not say (no Linux)."""
    if not _COUNTERS.is_file():
        return 0.0
    before = _used_and_all()
    time.sleep(seconds)
    used, everything = (now - then for now, then in zip(_used_and_all(), before, strict=True))
    return used / max(everything, 1) * (os.cpu_count() or 1)


def choose_waiting(busy: float | None = None) -> None:
    """Threads of this process and of its children sleep while they wait where more than `BUSY` cores are in use, unless
    the environment already says how they wait.

    It works only before torch is imported, since OpenMP reads its environment when it is loaded: the packages of
    commands (`train_encoder`, `train_generator`, `eval`) call it in their `__init__`, the libraries do not. Results do
    not change. busy: cores in use; None: measured.
    """
    if VARIABLE not in os.environ and (busy_cores() if busy is None else busy) > BUSY:
        os.environ[VARIABLE] = "PASSIVE"


def _used_and_all() -> tuple[int, int]:
    """Ticks of all cores since the start: in use, and altogether."""
    counts = [int(word) for word in _COUNTERS.read_text().splitlines()[0].split()[1:9]]
    return sum(counts) - counts[3] - counts[4], sum(counts)  # without idle and waiting for disks
