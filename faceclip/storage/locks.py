"""One process at a time writes into a folder; the lock dies with its process, even by SIGKILL."""

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from faceclip.errors import ConfigError, DataError, FaceClipError
from faceclip.storage.places import check_place

_UNSUPPORTED = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)
CACHE_MARKS = (".lock", "*/manifest.json")  # of which every cache folder has one


@contextmanager
def locked(path: Path, *, wait: bool = True, kind: type[FaceClipError] = DataError) -> Iterator[None]:
    """Hold the lock file `path` (made when missing, never removed: removing it would let two processes in). It says
    which process holds it or held it last.

    Raises `kind`, which names that process, when another one holds it and `wait` is false.
    """
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip()
            raise kind(
                f"another process is writing {path.parent}{f' ({holder})' if holder else ''}: wait until it ends, or "
                "stop it"
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            warnings.warn(f"{path}: no locks on this file system; let one process at a time write there", stacklevel=3)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()
        yield


@contextmanager
def locked_cache(cache: Path) -> Iterator[bool]:
    """One process at a time in a cache folder: the ranks of a distributed run, and several runs on one data set, must
    not write over each other. Not to be nested: the inner one would wait for the outer one.

    Raises ConfigError for a folder that holds something else (`faceclip.storage.places`).

    Yields whether the folder can be written; on read-only storage nobody builds and nobody needs the lock.
    """
    check_place(cache, "cache=", CACHE_MARKS)
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
