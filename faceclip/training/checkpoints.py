"""Training checkpoints that are either complete or not there.

A checkpoint is written into a temporary folder, every file is fsynced, a manifest with their SHA-256 is
written last, and the folder is renamed to `step-00001234`. Only then are older checkpoints removed. A kill at
any moment leaves the previous ones untouched.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from faceclip.errors import CheckpointError
from faceclip.storage.files import disk_errors

MANIFEST = "manifest.json"
TENSORS = "state.safetensors"
FACTS = "state.json"
LATER = "later.json"
_STEP = re.compile(r"step-\d+")
_TEMPORARY = re.compile(r"\.(?P<target>.+)\.(?P<process>\d+)\.(?P<kind>tmp|old)")


def save_checkpoint(
    directory: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    *,
    keep: int = 2,
    previous: int | None = None,
) -> Path:
    """Write checkpoint `step` below `directory`; returns its folder. It and the `keep` − 1 newest before it stay.

    previous: step of the checkpoint that this run wrote or resumed last (None: the newest before `step`). Those after
    it were damaged, or the run would have gone on from them, and are removed.

    Raises CheckpointError when the disk is full or not writable; nothing half-written stays.
    """

    def write(folder: Path) -> None:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / TENSORS)
        (folder / FACTS).write_text(json.dumps(dict(facts), indent=1, sort_keys=True))

    target = directory / f"step-{step:08d}"
    write_atomically(target, write)
    newest = step - 1 if previous is None else previous
    others = [folder for folder in checkpoints(directory) if folder != target]
    before = [folder for folder in others if step_of(folder) <= newest]
    for folder in set(others).difference(before[max(0, len(before) - keep + 1) :]):
        shutil.rmtree(folder)
    return target


def write_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder, seal it with a manifest and rename it to `target`.

    An existing `target` is replaced. Raises CheckpointError for any failure of the file system.
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
                _sync_folder(folder)
            _sync_folder(temporary)
            if target.exists():
                # A folder cannot be renamed over a full one: the old one steps aside first and is removed last.
                aside = target.with_name(f".{target.name}.{os.getpid()}.old")
                target.rename(aside)
                temporary.rename(target)
                shutil.rmtree(aside)
            else:
                temporary.rename(target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def add_facts(directory: Path, step: int, facts: Mapping[str, Any]) -> None:
    """Facts of the sealed checkpoint `step` that were not known when it was written; all of them are there or none.

    Raises CheckpointError when the disk is full or not writable.
    """
    folder = directory / f"step-{step:08d}"
    temporary = folder / f".{LATER}.{os.getpid()}.tmp"
    with disk_errors(folder / LATER, CheckpointError):
        temporary.write_text(json.dumps(dict(facts), indent=1, sort_keys=True))
        _seal(temporary)
        temporary.replace(folder / LATER)
        _sync_folder(folder)


def make_folder(directory: Path, option: str = "out=") -> None:
    """Makes the output folder that `option` names where it is missing.

    Raises CheckpointError, which begins with the option, when the folder cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{option}{directory}: cannot be made ({error.strerror}); name another folder") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise CheckpointError(f"{option}{directory}: cannot be written; name another folder, or make this one writable")


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts, later ones too, of a checkpoint. Raises CheckpointError when a file is missing or altered."""
    problem = verify(folder)
    if problem:
        raise CheckpointError(f"{folder}: {problem}; delete the folder to resume from an older checkpoint")
    # Copies: tensors mapped from the file are not aligned as allocated ones are, vectorized kernels then
    # treat other elements as the remainder, and a resumed run would differ in the last bit.
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
    facts, later = json.loads((folder / FACTS).read_text()), folder / LATER
    try:
        return tensors, facts | (json.loads(later.read_text()) if later.exists() else {})
    except ValueError as error:
        raise CheckpointError(f"{later}: not readable ({error}); delete this file and resume") from error


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes were writing in `directory`; call it before anything is written there.

    What had stepped aside for a folder that never came is put back. Temporaries of running processes stay.

    Raises CheckpointError when they cannot be removed.
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


def check_fit(folder: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, with the first names, unless both hold the same names and shapes."""
    wrong = found.keys() ^ expected.keys()
    wrong |= {name for name in found.keys() & expected.keys() if found[name].shape != expected[name].shape}
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        raise CheckpointError(f"{folder}: does not fit the model ({names}); use another output directory")


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint, or None when there is none; a damaged one is named in a warning."""
    for folder in reversed(checkpoints(directory)):
        problem = verify(folder)
        if problem is None:
            return folder
        warnings.warn(f"{folder}: {problem}; looking for an older checkpoint", stacklevel=2)
    return None


def verify(folder: Path) -> str | None:
    """What is wrong with a sealed folder, or None when its files are as they were written."""
    try:
        hashes = dict(json.loads((folder / MANIFEST).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            found = _digest(path)
        except OSError as error:
            return f"{name} cannot be read ({error})"
        if found != expected:
            return f"{name} is corrupt (its SHA-256 differs from the manifest)"
    return None


def checkpoints(directory: Path) -> list[Path]:
    """Folders of all checkpoints, damaged ones too, from the oldest to the newest step."""
    found = (path for path in Path(directory).glob("step-*") if path.is_dir() and _STEP.fullmatch(path.name))
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Number of steps after which a checkpoint was written."""
    return int(folder.name.removeprefix("step-"))


def _is_running(process: int) -> bool:
    """Whether another process of this machine has that number; a file of our own number is of an earlier process."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(path: Path) -> str:
    """fsync a file; returns its SHA-256."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return _digest(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
