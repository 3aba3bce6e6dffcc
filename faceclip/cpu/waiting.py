"""How the threads of one process wait for each other.

By default OpenMP's threads spin at the end of each product until the slowest of them is there. Where another program
takes a core, the thread on it stands still while the others burn the time that it needs: on two cores a training beside
one other busy process can lose nine tenths of its speed. Threads that sleep instead lose little (`benchmarks/busy.py`).
"""

import os

VARIABLE = "OMP_WAIT_POLICY"


def let_threads_sleep() -> None:
    """Threads of this process and of its children sleep while they wait, unless the environment says otherwise.

    It works only before torch is imported, since OpenMP reads its environment when it is loaded: the packages of
    commands (`train_encoder`, `train_generator`, `eval`) call it in their `__init__`, the libraries do not. Results do
    not change.
    """
    os.environ.setdefault(VARIABLE, "PASSIVE")
