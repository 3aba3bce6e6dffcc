"""Checks of the arguments of commands: each error names the option and a value that is accepted."""

from pathlib import Path
from typing import TypeVar

import torch
from diffusers import ModelMixin

from faceclip.errors import CheckpointError
from faceclip.storage.loading import load_strictly

MAX_SEED = 2**32 - 1  # that the generators of numpy and torch take
REPORT = ("results.json", "report.html")  # of which every finished report's folder has one
M = TypeVar("M", bound=ModelMixin)


def check_export(option: str, directory: Path, file: str, remedy: str) -> None:
    """Raises CheckpointError unless `directory` is a folder with the file by which exports are known."""
    if not (directory / file).is_file():
        what = f"has no {file}" if directory.is_dir() else "is not a folder"
        raise CheckpointError(f"{option} {directory} {what}: give {remedy}")


def use_threads(count: int | None) -> None:
    """Sets torch's threads; None leaves them."""
    if count is not None:
        torch.set_num_threads(count)


def load_model(kind: type[M], directory: Path, where: str) -> M:
    """Returns a network of ours from its folder, in evaluation mode.

    Raises CheckpointError, which begins with `where`, when the folder is missing, damaged, or of another network.
    """
    check_export(where, directory, "config.json", f"the folder of a {kind.__name__}")
    try:
        return load_strictly(kind.from_pretrained, kind, directory).eval()
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
