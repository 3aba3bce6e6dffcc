"""SHA-256 of files, remembered by size and time of change as git's index does, so that only new files are read."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from faceclip.errors import DataError


def content_hash(files: Iterable[Path], root: Path, memo: Path) -> str:
    """SHA-256 over names (relative to `root`) and contents of `files`; digests are kept in the JSON file `memo`.

    Raises DataError for a file that cannot be read.
    """
    known = _read(memo)
    current: dict[str, list] = {}
    total = hashlib.sha256()
    for file in sorted(files):
        try:
            stat = file.stat()
            stored = known.get(str(file))
            if stored is None or stored[:2] != [stat.st_size, stat.st_mtime_ns]:
                with file.open("rb") as opened:
                    stored = [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(opened, "sha256").hexdigest()]
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}): check the file and its permissions") from error
        current[str(file)] = stored
        total.update(os.fsencode(os.path.relpath(file, root)) + f"\0{stored[2]}\n".encode())
    if current != {name: known.get(name) for name in current}:
        with suppress(DataError):  # read-only storage: the files are then read again the next time
            write_json(memo, known | current)
    return total.hexdigest()


def _read(memo: Path) -> dict[str, list]:
    try:
        return json.loads(memo.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{memo} is corrupt ({error}): delete it, it only saves time") from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict:
    """A JSON object. Raises DataError naming the file when it is none."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is corrupt ({error}): delete it, or choose another output folder") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is corrupt (no JSON object): delete it, or choose another output folder")
    return content


def write_json(path: Path, content: object) -> None:
    """Replaces `path` in one step: a reader sees the old file or the new one. Raises DataError on a full disk.

    One writer at a time: the temporary file has a fixed name, so that one left by a killed process is written over.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # read-only storage refuses that as well
            temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write {path} ({error}): free space or make the folder writable") from error
