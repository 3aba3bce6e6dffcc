"""Checkpoint files of other projects: finding them, reading them without running code, and comparing them key by key.

`.pt` files are pickles. They are opened with `weights_only=True`, so that a file can hold tensors and nothing else.
"""

import functools
import logging
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from faceclip.errors import BAD_INPUT, CheckpointError, ConfigError, listed
from faceclip.storage.files import replacing
from faceclip.storage.loading import building, refuse_differences
from faceclip.storage.regular import open_regular

LICENSE = "CC-BY-NC-4.0"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
Model = TypeVar("Model", bound=nn.Module)
logger = logging.getLogger(__name__)


@functools.cache
def mention_license(what: str) -> None:
    """Logs once per process that the published weights must not be used commercially."""
    logger.warning("%s: the published FaceCLIP weights are licensed %s, no commercial use", what, LICENSE)


def is_hub_id(name: str) -> bool:
    """Returns whether a name that does not exist on this disk may be a hub id, OWNER/NAME.

    No folder may have the owner's name, the owner must not be `runs`, and the name must not be that of a weights file.
    So a misspelt path is not looked up on the hub.
    """
    path = Path(name)
    known = path.parts[:1] == ("runs",) or path.suffix in (".pt", ".safetensors") or path.parent.is_dir()
    return bool(_HUB_ID.fullmatch(name)) and not known


def resolve(path_or_hub_id: str | Path, file: str, *, revision: str | None = None) -> Path:
    """Returns the local path of what a user names: a file, a directory of ours, or `file` of a repository.

    A repository is a hub id, from which `file` is downloaded (at `revision`), or a directory that holds a copy of it.

    Raises:
        CheckpointError: nothing of that name, or a download that failed. ConfigError: no path at all.
    """
    if not isinstance(path_or_hub_id, str | os.PathLike):
        raise ConfigError(
            f"path_or_hub_id must be a path or a hub id, got {type(path_or_hub_id).__name__}: give the "
            f"place of {file}, or a hub id such as ByteDance/FaceCLIP"
        )
    path = Path(path_or_hub_id)
    if path.is_dir():
        copy = next((path / name for name in (file, Path(file).name) if (path / name).is_file()), None)
        return copy or path
    if path.is_file():
        return path
    if not is_hub_id(str(path_or_hub_id)):
        here = f"; as there is a folder {path.parent} here, it is read as a path" if path.parent.is_dir() else ""
        raise CheckpointError(
            f"{path} is neither a file, nor a directory, nor a hub id such as ByteDance/FaceCLIP{here}"
        )
    try:
        return Path(hf_hub_download(str(path_or_hub_id), file, revision=revision))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{path_or_hub_id} is no local path, and {file} could not be downloaded from the hub ({error}): "
            "check the spelling and the network, or give the path of a file that you have"
        ) from error


def empty_model(kind: type[Model], config: dict[str, Any]) -> Model:
    """Returns a model of the class `kind` without storage for its parameters.

    Raises:
        ConfigError: settings that the class does not know or that are impossible.
    """
    try:
        with building, init_empty_weights():
            return kind(**config)
    except BAD_INPUT as error:
        raise ConfigError(f"config does not describe a {kind.__name__}: {error}") from error


def check_archive(path: Path) -> None:
    """Reads a `.pt` file once, in pieces, and compares its checksums, which memory-mapped reading leaves out.

    Nothing is checked of files without checksums: those of the old format, and those written with
    `torch.serialization.set_crc32_options(False)`.

    Raises:
        CheckpointError: a byte of the file is not the one that was written.
    """
    if not zipfile.is_zipfile(path):
        return  # of the old format, or not readable: `read_checkpoint` says what is wrong with it
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(part.CRC for part in archive.infolist()):
                logger.warning("%s was written without checksums: damage to it cannot be noticed", path)
                return
            damaged = archive.testzip()
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} is damaged ({error}): download it again") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged, the checksum of {damaged} in it is wrong: download it again")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a `.pt` file, memory-mapped, without running any code in it; checksums are not compared.

    Raises:
        CheckpointError: missing or truncated file, a directory, a pickle that holds more than tensors, or no state
            dictionary.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory where a checkpoint file (.pt) is expected")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path) and not _is_old_pickle(path):
            raise CheckpointError(f"{path} is truncated or no PyTorch file ({error}): download it again") from error
        raise CheckpointError(f"{path} holds more than tensors and is refused (weights_only): {error}") from error
    except (EOFError, OSError, zipfile.BadZipFile, struct.error, *BAD_INPUT) as error:
        raise CheckpointError(f"{path} cannot be read, it may be truncated ({error}): download it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not a dictionary of tensors")
    strangers = [repr(name) for name in found if not isinstance(name, str)]
    if strangers:
        raise CheckpointError(f"{path} names tensors by what is no text: {listed(strangers)}. Give a state dictionary")
    others = [name for name, value in found.items() if not _is_plain(value)]
    if others or not found:
        raise CheckpointError(
            f"{path} holds no dictionary of tensors: {listed(others) or 'it is empty'}"
            f"{' are no tensors' if others else ''}. Give the state dictionary alone"
        )
    return found


def _is_plain(value: object) -> bool:
    """Returns whether `value` is a tensor with one number for each place."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def _is_old_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"  # a pickle of protocol 2 or later


def read_directory(directory: Path, pattern: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads tensors of the safetensors files of a directory that match, memory-mapped, and their metadata.

    Raises:
        CheckpointError: a file where a directory is expected, no such files, or a truncated one.
    """
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file where a directory made by `convert` is expected")
    files = sorted(directory.glob(pattern))
    if not files:
        raise CheckpointError(f"{directory} holds no {pattern}: give a directory made by `convert`")
    state: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        try:
            with open_regular(file):
                pass
            with safe_open(file, framework="pt") as tensors:
                state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
                metadata |= tensors.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read, it may be truncated ({error}): write it again") from error
    return state, metadata


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Context for code that writes `target`.

    Raises:
        CheckpointError: in place of the errors of the file system or of a serializer.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{target} cannot be written ({error}): free space, or name a place that exists and is "
            "writable; delete what is there of it and run the command again"
        ) from error


def write_checkpoint(state: Mapping[str, Tensor], target: Path) -> None:
    """Writes a `.pt` file of tensors atomically: `target` is always the whole old file or the whole new one.

    Raises:
        CheckpointError: the file cannot be written; the message names it.
    """
    with writing(target), replacing(target) as file:
        torch.save(dict(state), file)


def check_keys(
    given: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    where: str,
    what: str,
    *,
    counters: Container[str] = (),
    advice: str = "",
) -> None:
    """Compares names, shapes and kinds of numbers. Tensors must be floating point, of any precision.

    Args:
        expected: shapes by name. where, what: the file and what it should be, for the message. advice: its end.
        counters: names of tensors that may also be integers.

    Raises:
        CheckpointError: numbers and first names of what is missing, unexpected, misshapen and mistyped; all names are
            attributes of the error.
    """
    mistyped = {
        name: f"{name} is {given[name].dtype}, expected floating point"
        for name in sorted(expected.keys() & given.keys())
        if not given[name].is_floating_point() and (name not in counters or given[name].is_complex())
    }
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    refuse_differences(given, shapes, mistyped, f"{where} is not a {what}; ", advice)


def without_prefix(state: Mapping[str, Tensor], anchor: str, where: str) -> dict[str, Tensor]:
    """Returns the state without the prefix that wrappers put before all names ("model.", "module.").

    `anchor`: the name of one tensor that every such state has.

    Raises:
        CheckpointError: names that do not all begin with the same prefix.
    """
    prefixes = [name.removesuffix(anchor) for name in state if name == anchor or name.endswith(f".{anchor}")]
    prefix = min(prefixes, key=len, default="")
    strangers = [name for name in state if not name.startswith(prefix)]
    if strangers:
        raise CheckpointError(f"{where}: names begin with {prefix!r}, but not {listed(sorted(strangers))}")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
