"""The road from rows to arrays on disk, block by block: resumable after a kill, verified when it is read."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from faceclip.errors import DataError
from faceclip.storage.hashes import short_key
from faceclip.storage.locks import locked_cache
from faceclip.storage.shards import ShardedArray, ShardFolder
from faceclip.training.progress import bar

ROWS = 256  # of a block
Builder = Callable[[int, int], Mapping[str, NDArray]]


def kept_rows(
    cache: Path,
    name: str,
    facts: Mapping[str, Any],
    count: int,
    build: Builder,
    *,
    rows: int = ROWS,
    around: Callable[[], AbstractContextManager] = nullcontext,
    hashes: bool = True,
) -> dict[str, ShardedArray]:
    """Fields of `count` rows each, built on first use and kept as shards in the folder `cache/NAME-KEY`.

    Several processes may ask at the same time: one builds, the others wait and read.

    Args:
        name: words for people, joined by hyphens. facts: what decides the content; count and block count, too.
        build: rows [start, stop) → arrays of stop − start rows, always the same fields, shapes and types.
        rows: of a block. around: makes the context in which blocks are built; a complete folder does not enter it.
        hashes: whether every bit is compared with what was written, or lengths alone.

    Raises:
        DataError: a shard that was changed or truncated since it was written (the message says what to delete), a
            builder that changes its shapes, a disk that is full, or missing blocks where nothing can be written.
        ConfigError: the folder `cache` cannot be made.
    """
    about = {**facts, "count": count, "rows": rows}
    with locked_cache(cache) as writable:
        folder = ShardFolder(cache / f"{name}-{short_key(*about.values())}", about)
        if not folder.complete:
            check_writable(writable, cache, name)
            with around(), bar(name.replace("-", " "), count) as advance:
                for start in range(len(folder) * rows, count, rows):
                    stop = min(start + rows, count)
                    folder.append(build(start, stop))
                    advance(stop, count)
            folder.finish()
    # Outside of the lock: the processes of a run read terabytes side by side, not one after another.
    return folder.open(hashes=hashes)


def check_writable(writable: bool, cache: Path, what: str) -> None:
    """Raises DataError where something is missing in a cache that can only be read."""
    if not writable:
        raise DataError(
            f"cache={cache}: {what} is not complete there and it cannot be written: name another folder by cache=DIR"
        )
