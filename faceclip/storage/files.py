"""Writes files atomically, and reports full disks by an error that names the file and the remedy."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from safetensors import SafetensorError

from faceclip.errors import DataError, FaceClipError
from faceclip.storage.regular import parse_json, read_regular

_CANNOT = "cannot write"


@contextmanager
def disk_errors(path: Path, kind: type[FaceClipError] = DataError) -> Iterator[None]:
    """Context that turns errors of the file system, such as a full disk, into `kind`, which names `path` and the
    remedy."""
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
def replacing(path: Path, *, alone: bool = False) -> Iterator[BinaryIO]:
    """Context with an open file beside `path`, which is flushed to disk and replaces `path` at the end.

    After any error `path` is unchanged and the file beside it is gone. alone: nobody else writes `path` at the same
    time, so the file beside it has a fixed name, and the one of a killed process is overwritten.
    """
    writer = "" if alone else f".{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}{writer}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            sync(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(file: BinaryIO) -> None:
    """Waits until everything that was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes, *, kind: type[FaceClipError] = DataError, alone: bool = False) -> None:
    """Replaces `path` atomically, so that readers see the old file or the new one. Missing folders are created.

    Raises `kind` if the disk is full or not writable. alone: see `replacing`.
    """
    with disk_errors(path, kind):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, alone=alone) as file:
            file.write(data)


def write_text(path: Path, text: str, **options: Any) -> None:
    """Writes a text by `write_bytes` with the same `options`."""
    write_bytes(path, text.encode(), **options)


def write_json(path: Path, content: object, *, indent: int = 1, sort_keys: bool = True, **options: Any) -> None:
    """Writes JSON with a final line break by `write_text`."""
    write_text(path, json.dumps(content, indent=indent, sort_keys=sort_keys) + "\n", **options)


def write_picture(path: Path, picture: Image.Image, kind: str = "PNG", **options: Any) -> None:
    """Writes a picture in a format of Pillow, with Pillow's `options`, atomically. Missing folders are created.

    Raises DataError if the disk is full or not writable.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            picture.save(file, format=kind, **options)


def read_json(path: Path, remedy: str = "delete it, or choose another output folder") -> dict:
    """Reads a JSON object.

    Raises FileNotFoundError if the file is missing. Raises DataError, which names the file, if it cannot be read, and
    with the remedy if it is no JSON object.
    """
    try:
        content = parse_json(read_regular(path, 2**28))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    except ValueError as error:
        raise DataError(f"{path} is corrupt ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is corrupt (no JSON object): {remedy}")
    return content
