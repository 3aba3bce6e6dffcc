"""SHA-256 of bytes, files, models and settings, and short keys of caches."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from faceclip.errors import DataError
from faceclip.storage.files import write_json
from faceclip.storage.regular import open_regular, parse_json, read_regular

Buffer = Any  # whatever hashlib reads: bytes, or a contiguous array


def bytes_hash(*parts: Buffer) -> str:
    """Returns the SHA-256 (64 hexadecimal digits) of bytes and contiguous arrays, one after the other."""
    return joined_hash(parts)


def joined_hash(parts: Iterable[Buffer]) -> str:
    """Returns the `bytes_hash` of parts that an iterable yields."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def int64_hash(data: Buffer) -> int:
    """Returns a signed integer of 64 bits that depends on all of `data`, for columns of numbers."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little", signed=True)


def short_key(*parts: object) -> str:
    """Returns 20 hexadecimal digits that depend on every part."""
    return bytes_hash(json.dumps([str(part) for part in parts]).encode())[:20]


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(files: Iterable[tuple[str, Path]], head: str = "") -> str:
    """Returns the SHA-256 of `head` and the names and digests of files, in the given order. Raises OSError."""
    return bytes_hash(head.encode(), *(name.encode() + bytes.fromhex(file_hash(file)) for name, file in files))


def content_hash(files: Iterable[Path], root: Path, memo: Path) -> str:
    """Returns the SHA-256 of names (relative to `root`) and contents of `files`.

    The JSON file `memo` keeps digests by size and modification time, like git's index, so that only new files are read.
    Raises DataError if a file cannot be read.
    """
    known = _read_memo(memo)
    current: dict[str, list] = {}
    total = hashlib.sha256()
    for file in sorted(files):
        try:
            stat = file.stat()
            stored = known.get(str(file))
            if stored is None or stored[:2] != [stat.st_size, stat.st_mtime_ns]:
                stored = [stat.st_size, stat.st_mtime_ns, file_hash(file)]
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}): check the file and its permissions") from error
        current[str(file)] = stored
        total.update(os.fsencode(os.path.relpath(file, root)) + f"\0{stored[2]}\n".encode())
    if current != {name: known.get(name) for name in current}:
        with suppress(DataError):  # read-only storage: the files are then read again the next time
            write_json(memo, known | current, alone=True)
    return total.hexdigest()


def _read_memo(memo: Path) -> dict[str, list]:
    try:
        return parse_json(read_regular(memo, 2**30))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{memo} is corrupt ({error}): delete it, it only saves time") from error


def settings_text(config: Mapping[str, Any]) -> str:
    """Returns the configuration of a model as JSON, without fields that do not affect results: those with a leading
    underscore, such as the path from which diffusers loaded it, and the licence."""
    kept = {name: value for name, value in config.items() if not name.startswith("_") and name != "licence"}
    return json.dumps(kept, sort_keys=True)


def tensors_hash(tensors: Iterable[tuple[str, torch.Tensor]], head: str = "") -> str:
    """Returns the SHA-256 of `head` and of names, shapes, types and values of tensors, in the order of their names."""
    digest = hashlib.sha256(head.encode())
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def module_hash(module: torch.nn.Module) -> str:
    """Returns the `tensors_hash` of a module's state, class and configuration. The latter determines what the weights
    compute, for example by activation, number of heads and normalization of pixels."""
    settings = json.loads(settings_text(getattr(module, "config", {})))
    head = json.dumps([type(module).__name__, settings], sort_keys=True)
    return tensors_hash(module.state_dict().items(), head)


def frozen_hash(module: torch.nn.Module) -> str:
    """Returns the `tensors_hash` of a module's frozen parameters and configuration, which identifies the base model
    before adapters were added."""
    frozen = ((name, parameter) for name, parameter in module.named_parameters() if not parameter.requires_grad)
    return tensors_hash(frozen, settings_text(module.config))
