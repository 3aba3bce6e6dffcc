"""One process at a time writes into a folder; the lock dies with its process, even by SIGKILL."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faceclip.errors import DataError


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path` (made when missing, never removed: removing it would let two processes in).

    Raises `DataError` when another process holds it and `wait` is false.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise DataError(f"another process is writing {path.parent}: wait until it ends, or stop it") from error
        yield
