"""Files written whole or not at all; a full disk as an error that names the file and the remedy."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from safetensors import SafetensorError

from faceclip.errors import DataError, FaceClipError

_CANNOT = "cannot write"


@contextmanager
def disk_errors(path: Path, kind: type[FaceClipError] = DataError) -> Iterator[None]:
    """Failures of the file system in the block, such as a full disk, as `kind` that names `path` and the remedy."""
    try:
        yield
    except Exception as error:
        # Of blocks within blocks, the outermost path is the one that the caller knows.
        cause = error.__cause__ if isinstance(error, FaceClipError) and str(error).startswith(_CANNOT) else error
        full = getattr(cause, "errno", None) == errno.ENOSPC or "No space left" in str(cause)
        if not full and not isinstance(cause, OSError | SafetensorError):
            raise
        remedy = "the disk is full: free space" if full else "free space or make the folder writable"
        raise kind(f"{_CANNOT} {path} ({cause}): {remedy}, and run again") from cause


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, beside `path`, that takes its place at the end of the block, flushed to disk.

    Whatever the block raises, and OSError of the file system, leaves `path` as it was and nothing beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_picture(path: Path, picture: Image.Image, kind: str = "PNG", **options: Any) -> None:
    """A picture file of a kind that Pillow knows, with Pillow's `options`; folders above it are made.

    Raises DataError when the disk is full or not writable.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            picture.save(file, format=kind, **options)
