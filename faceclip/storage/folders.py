"""Writes folders atomically: beside their place, fsynced, sealed by a manifest of SHA-256, and then renamed.

A folder is either complete or absent, and a kill at any moment leaves the earlier one intact.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from faceclip.errors import CheckpointError
from faceclip.storage.files import disk_errors
from faceclip.storage.hashes import file_hash
from faceclip.storage.regular import parse_json, read_regular

MANIFEST = "manifest.json"
_TEMPORARY = re.compile(r"\.(?P<target>.+)\.(?P<process>\d+)\.(?P<kind>tmp|old)")


def write_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary folder, seals it with a manifest, and renames it to `target`.

    An existing `target` is replaced. Raises CheckpointError for any error of the file system.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with disk_errors(target, CheckpointError):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            write(temporary)
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            hashes = {str(path.relative_to(temporary)): _seal(path) for path in files}
            (temporary / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=1))
            _seal(temporary / MANIFEST)
            for folder in [path for path in temporary.rglob("*") if path.is_dir()]:
                sync_folder(folder)
            sync_folder(temporary)
            if target.exists():
                # A folder cannot be renamed over a full one: the old one steps aside first and is removed last.
                aside = target.with_name(f".{target.name}.{os.getpid()}.old")
                target.rename(aside)
                temporary.rename(target)
                shutil.rmtree(aside)
            else:
                temporary.rename(target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path) -> str | None:
    """Returns a description of what is wrong with a sealed folder; None if its files are unchanged."""
    try:
        hashes = dict(parse_json(read_regular(folder / MANIFEST))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            found = file_hash(path)
        except OSError as error:
            return f"{name} cannot be read ({error})"
        if found != expected:
            return f"{name} is corrupt (its SHA-256 differs from the manifest)"
    return None


def remove_leftovers(directory: Path) -> None:
    """Removes temporary folders of killed processes from `directory`; call it before anything is written there.

    A folder that was moved aside for a replacement that never arrived is moved back. Temporary folders of running
    processes are kept.

    Raises CheckpointError if a folder cannot be removed.
    """
    try:
        for path in sorted(Path(directory).glob(".*")):
            match = _TEMPORARY.fullmatch(path.name)
            if match is None or not path.is_dir() or _is_running(int(match["process"])):
                continue
            target = path.with_name(match["target"])
            if match["kind"] == "old" and not target.exists():
                path.rename(target)
            else:
                shutil.rmtree(path)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot remove what a killed run left ({error}); remove it") from error


def _is_running(process: int) -> bool:
    """Returns whether another process of this machine has this number. Our own number means an earlier process."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _seal(path: Path) -> str:
    """Flushes a file to disk and returns its SHA-256."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return file_hash(path)


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
