"""Saves atomically into a folder that may have an earlier save and other files: the whole new save arrives, or
nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faceclip.errors import CheckpointError
from faceclip.storage.files import disk_errors

_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_INDEX = re.compile(r"(?P<stem>.+)\.(?P<kind>safetensors|bin)\.index(?P<variant>\.[^.]+)?\.json")


@contextmanager
def staged(directory: Path, *, last: str, optional: str) -> Iterator[Path]:
    """Context with a temporary folder in `directory`, whose files move to the same places in `directory` at its end.

    Until then the earlier save is not touched, so a failed save leaves it whole; both need space on the disk. The file
    `last`, which marks a whole save, is removed before the others move and comes after them, so that a kill in between
    can be noticed. Of the earlier save, the file `optional` is removed if the new one lacks it, and so are remaining
    shards of weights; all other files stay.

    Raises CheckpointError if the disk is full or not writable.
    """
    temporary = directory / f".save.{os.getpid()}.tmp"
    with disk_errors(directory, CheckpointError):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for leftover in directory.glob(".save.*.tmp"):  # of killed processes: one saves at a time
                shutil.rmtree(leftover)
            temporary.mkdir()
            yield temporary
            names = sorted(path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file())
            for name in names:
                with (temporary / name).open("rb+") as file:
                    os.fsync(file.fileno())
            for name in (last, optional):
                (directory / name).unlink(missing_ok=True)
            for name in names:
                if name != Path(last):
                    (directory / name.parent).mkdir(parents=True, exist_ok=True)
                    (temporary / name).replace(directory / name)
            _remove_older_weights(directory, set(names))
            (temporary / last).replace(directory / last)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _remove_older_weights(directory: Path, written: set[Path]) -> None:
    """Removes files of the same weights in other pieces, which diffusers would read in place of the new ones."""
    weights = {(name.parent, _whole(name.name)) for name in written}
    for folder in {name.parent for name in written}:
        for path in (directory / folder).iterdir():
            if folder / path.name not in written and (folder, _whole(path.name)) in weights:
                path.unlink()


def _whole(name: str) -> str:
    """Returns the file name of weights in one piece, given that of a shard or of the index of shards."""
    index = _INDEX.fullmatch(name)
    return f"{index['stem']}{index['variant'] or ''}.{index['kind']}" if index else _SHARD.sub("", name)
