"""One process at a time writes into a folder; the lock dies with its process, even by SIGKILL."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from faceclip.errors import ConfigError, DataError


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


@contextmanager
def locked_cache(cache: Path) -> Iterator[bool]:
    """One process at a time in a cache folder: the ranks of a distributed run, and several runs on one data set, must
    not write over each other. Not to be nested: the inner one would wait for the outer one.

    Yields whether the folder can be written; on read-only storage nobody builds and nobody needs the lock.
    """
    with ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(cache / ".lock"))
            writable = True
        except OSError as error:
            if not cache.is_dir():
                raise ConfigError(f"cache={cache}: cannot be made ({error.strerror}); name a writable one") from error
            writable = False
        yield writable
