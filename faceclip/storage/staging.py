"""Saving into a folder that may hold an earlier save and other files: all of the new save arrives, or nothing."""

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
    """A temporary folder inside `directory`, whose files go to the same places in `directory` when the block ends well.

    Until then nothing of an earlier save is touched, so that one that fails leaves it whole; both lie on the disk at
    once. The file `last`, which marks a whole save, is removed before the others take their places and comes after
    them: a kill in between can be noticed. Of the earlier save, the file `optional` is removed if the new one lacks it,
    and so are remaining shards of weights; all other files stay.

    Raises CheckpointError when the disk is full or not writable.
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
    """Files of the same weights in other pieces: diffusers would take them for those that were written."""
    weights = {(name.parent, _whole(name.name)) for name in written}
    for folder in {name.parent for name in written}:
        for path in (directory / folder).iterdir():
            if folder / path.name not in written and (folder, _whole(path.name)) in weights:
                path.unlink()


def _whole(name: str) -> str:
    """The file name that weights have in one piece, given that of a shard or of the index of shards."""
    index = _INDEX.fullmatch(name)
    return f"{index['stem']}{index['variant'] or ''}.{index['kind']}" if index else _SHARD.sub("", name)
