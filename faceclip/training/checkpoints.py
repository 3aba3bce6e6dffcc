"""Writes training checkpoints atomically: a checkpoint is either complete or absent.

A checkpoint is written into a temporary folder, every file is fsynced, a manifest with their SHA-256 is written last,
and the folder is renamed to `step-00001234`. Older checkpoints are removed only after that, so a kill at any moment
leaves the previous ones intact.
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
from faceclip.storage.locks import hold_folder
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
    """Writes checkpoint `step` below `directory` and returns its folder; keeps it and the `keep` − 1 newest before it.

    previous: step of the checkpoint that this run wrote or resumed last (None: the newest before `step`). Checkpoints
    after it are damaged, because the run would otherwise have resumed from them; they are removed.

    Raises CheckpointError if the disk is full or not writable; no partial checkpoint remains.
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
    """Returns the tensors in host memory, each with its own storage, as safetensors demands.

    Only tensors that share storage are copied; with `copy` all are.
    """
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
    """Adds facts, atomically, to the sealed checkpoint `step` that were not known when it was written.

    Raises CheckpointError if there is no such checkpoint, or if the disk is full or not writable.
    """
    folder = directory / f"step-{step:08d}"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such checkpoint to add facts to; save it first")
    with disk_errors(folder / LATER, CheckpointError):
        write_json(folder / LATER, dict(facts))
        sync_folder(folder)


def make_folder(directory: Path, option: str = "out=", marks: Sequence[str] = ()) -> None:
    """Creates the output folder that `option` names, unless it exists. With `marks`, this process also holds it.

    Raises ConfigError for the root of the file system and, with `marks`, for another program's folder
    (`faceclip.storage.places.check_place`) and for one that another process holds, and CheckpointError if the folder
    cannot be created or written. All messages begin with the option.
    """
    check_place(directory, option, marks)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{option}{directory}: cannot be made ({error.strerror}); name another folder") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise CheckpointError(f"{option}{directory}: cannot be written; name another folder, or make this one writable")
    if marks:
        hold_folder(directory, option)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads tensors and facts, including later ones, of a checkpoint.

    Raises CheckpointError if a file is missing, altered or unreadable.
    """
    problem = verify(folder)
    if problem:
        raise CheckpointError(f"{folder}: {problem}; delete the folder to resume from an older checkpoint")
    # Tensors are copied, because those mapped from the file are aligned otherwise than allocated ones: vectorized
    # kernels would treat other elements as the remainder, and a resumed run would differ in the last bit.
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
    facts, later = parse_json((folder / FACTS).read_bytes()), folder / LATER
    try:
        return tensors, facts | (parse_json(read_regular(later)) if later.exists() else {})
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{later}: not readable ({error}); delete this file and resume") from error


def check_fit(folder: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, which lists the first differing names, unless both hold the same names and shapes."""
    wrong = found.keys() ^ expected.keys()
    wrong |= {name for name in found.keys() & expected.keys() if found[name].shape != expected[name].shape}
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        raise CheckpointError(f"{folder}: does not fit the model ({names}); use another output directory")


def resumable_checkpoint(directory: Path) -> Path | None:
    """Returns the `newest_checkpoint`, or None if the folder has no checkpoints at all.

    Raises CheckpointError if all checkpoints are damaged, so that a run never silently starts anew beside them.
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
    """Returns the newest complete checkpoint, or None if there is none; warns about damaged ones."""
    for folder in reversed(checkpoints(directory)):
        problem = verify(folder)
        if problem is None:
            return folder
        warnings.warn(f"{folder}: {problem}; looking for an older checkpoint", stacklevel=2)
    return None


def checkpoints(directory: Path) -> list[Path]:
    """Returns the folders of all checkpoints, including damaged ones, from the oldest to the newest step."""
    found = (path for path in Path(directory).glob("step-*") if path.is_dir() and _STEP.fullmatch(path.name))
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Returns the number of steps after which a checkpoint was written."""
    return int(folder.name.removeprefix("step-"))


def check_unused(folder: Path) -> None:
    """Raises CheckpointError if the folder of a training that starts anew holds a checkpoint."""
    if found := checkpoints(folder):
        raise CheckpointError(
            f"{folder} holds {found[-1].name}, and trainer.resume=false would start anew beside it: use another output "
            "directory, delete this one, or resume"
        )


def check_same_start(directory: Path, folder: Path | None, device: torch.device) -> None:
    """Raises CheckpointError if the ranks see different newest checkpoints, because they would train different weights.

    folder: the newest checkpoint that this rank sees.
    """
    step = torch.tensor([-1 if folder is None else step_of(folder)], device=device)
    if gather_rows(step).unique().numel() > 1:
        raise CheckpointError(
            f"{directory}: the processes see different newest checkpoints; all need the same shared folder"
        )
