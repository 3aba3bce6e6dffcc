"""Training checkpoints that are either complete or not there.

A checkpoint is written into a temporary folder, every file is fsynced, a manifest with their SHA-256 is
written last, and the folder is renamed to `step-00001234`. Only then are older checkpoints removed. A kill at
any moment leaves the previous ones untouched.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from faceclip.errors import CheckpointError
from faceclip.storage.files import disk_errors, write_json
from faceclip.storage.folders import sync_folder, verify, write_atomically
from faceclip.storage.places import check_place
from faceclip.storage.regular import parse_json, read_regular
from faceclip.training.collectives import gather_rows

TENSORS = "state.safetensors"
FACTS = "state.json"
LATER = "later.json"
_STEP = re.compile(r"step-\d+")


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


def unshared(tensors: Mapping[str, Tensor], *, copy: bool = False) -> dict[str, Tensor]:
    """The tensors in host memory, each with storage of its own, as safetensors demands; only those that share storage
    are copied, or with `copy` all."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        storage = tensor.untyped_storage()
        if copy or storage.data_ptr() in storages or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        found[name] = tensor
    return found


def add_facts(directory: Path, step: int, facts: Mapping[str, Any]) -> None:
    """Facts of the sealed checkpoint `step` that were not known when it was written; all of them are there or none.

    Raises CheckpointError when there is no such checkpoint, and when the disk is full or not writable.
    """
    folder = directory / f"step-{step:08d}"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such checkpoint to add facts to; save it first")
    with disk_errors(folder / LATER, CheckpointError):
        write_json(folder / LATER, dict(facts))
        sync_folder(folder)


def make_folder(directory: Path, option: str = "out=", marks: Sequence[str] = ()) -> None:
    """Makes the output folder that `option` names where it is missing.

    Raises ConfigError for the root of the file system and, with `marks`, for another program's folder
    (`faceclip.storage.places.check_place`), and CheckpointError when the folder cannot be made or written; both begin
    with the option.
    """
    check_place(directory, option, marks)
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
    facts, later = parse_json((folder / FACTS).read_bytes()), folder / LATER
    try:
        return tensors, facts | (parse_json(read_regular(later)) if later.exists() else {})
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{later}: not readable ({error}); delete this file and resume") from error


def check_fit(folder: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, with the first names, unless both hold the same names and shapes."""
    wrong = found.keys() ^ expected.keys()
    wrong |= {name for name in found.keys() & expected.keys() if found[name].shape != expected[name].shape}
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        raise CheckpointError(f"{folder}: does not fit the model ({names}); use another output directory")


def resumable_checkpoint(directory: Path) -> Path | None:
    """`newest_checkpoint`; None is a folder without any checkpoint.

    Raises CheckpointError where all of several are damaged: nobody means to start anew over them.
    """
    found = newest_checkpoint(directory)
    if found is None and (damaged := checkpoints(directory)):
        names = ", ".join(folder.name for folder in damaged)
        raise CheckpointError(
            f"{directory}: every checkpoint is damaged ({names}): put back a copy of one to resume, or delete this "
            "folder to start anew at step 0"
        )
    return found


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint, or None when there is none; a damaged one is named in a warning."""
    for folder in reversed(checkpoints(directory)):
        problem = verify(folder)
        if problem is None:
            return folder
        warnings.warn(f"{folder}: {problem}; looking for an older checkpoint", stacklevel=2)
    return None


def checkpoints(directory: Path) -> list[Path]:
    """Folders of all checkpoints, damaged ones too, from the oldest to the newest step."""
    found = (path for path in Path(directory).glob("step-*") if path.is_dir() and _STEP.fullmatch(path.name))
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Number of steps after which a checkpoint was written."""
    return int(folder.name.removeprefix("step-"))


def check_unused(folder: Path) -> None:
    """Raises CheckpointError for a folder that holds a checkpoint, when a training shall begin anew."""
    if found := checkpoints(folder):
        raise CheckpointError(
            f"{folder} holds {found[-1].name}, and trainer.resume=false would start anew beside it: use another output "
            "directory, delete this one, or resume"
        )


def check_same_start(directory: Path, folder: Path | None, device: torch.device) -> None:
    """Raises CheckpointError where the ranks see different newest checkpoints, since they would train different
    weights. `folder` is what this rank sees."""
    step = torch.tensor([-1 if folder is None else step_of(folder)], device=device)
    if gather_rows(step).unique().numel() > 1:
        raise CheckpointError(
            f"{directory}: the processes see different newest checkpoints; all need the same shared folder"
        )
