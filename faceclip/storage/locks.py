"""Locks by which one process at a time writes into a folder. A lock ends with its process, even by SIGKILL."""

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
    """Context that holds the lock file `path`, which names its present or last holder.

    The file is created if it is missing, and never removed, because that would let two processes in. Raises `kind`,
    which names the holder, if another process holds it and `wait` is false.
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


_held: dict[Path, int] = {}  # folders that this process holds, and their descriptors


def hold_folder(folder: Path, option: str) -> None:
    """Locks a folder, which `option` ("--out ") names, until this process ends or leaves `folders_released`.

    The folder itself is locked, so no file remains in it. Raises ConfigError, which names the other process, if another
    process holds it.
    """
    place = folder.resolve()
    if place in _held:
        return
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(descriptor)
        os.close(descriptor)
        if error.errno in (*_UNSUPPORTED, errno.EBADF):
            return  # this file system has no locks, or none of folders
        if not isinstance(error, BlockingIOError):
            raise
        raise ConfigError(
            f"{option}{folder}: another process{holder} writes there: wait until it ends, or name another folder"
        ) from error
    _held[place] = descriptor


@contextmanager
def folders_released() -> Iterator[None]:
    """Context that releases at its end the folders that `hold_folder` locked in it."""
    before = set(_held)
    try:
        yield
    finally:
        for place in set(_held) - before:
            os.close(_held.pop(place))


def _holder(descriptor: int) -> str:
    """Returns a text with the number of the process that holds a lock; empty on systems other than Linux."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    inode = os.fstat(descriptor).st_ino
    held = [line.split() for line in lines if " FLOCK " in line and "->" not in line]
    found = [words[4] for words in held if words[5].endswith(f":{inode}")]
    return f" ({found[0]})" if found else ""


@contextmanager
def locked_cache(cache: Path) -> Iterator[bool]:
    """Context that locks a cache folder, so that ranks of a run, and several runs on the same data, do not overwrite
    each other. It must not be nested, because the inner one would wait for the outer one.

    Yields whether the folder can be written; on read-only storage no lock is needed. Raises ConfigError for a folder of
    another program (`faceclip.storage.places`).
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
