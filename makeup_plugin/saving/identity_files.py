"""Files of identities: tensors and facts in one safetensors file, read strictly. `makeup_plugin.identities` knows what
they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from faceclip.errors import CheckpointError
from faceclip.storage.files import write_bytes
from faceclip.storage.regular import read_regular

FORMAT = "makeup_plugin.identity"
VERSION = "1"
MAX_BYTES = 2**28  # 256 MiB; one of ten photos at full size has about 8 MB
REMEDY = "save it again by Identity.save"


def write_identity_file(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """One file, whole or not at all. Raises DataError when the disk is full or not writable."""
    metadata = {"format": FORMAT, "version": VERSION, "facts": json.dumps(facts, sort_keys=True)}
    write_bytes(path, save({name: value.contiguous() for name, value in tensors.items()}, metadata))


def read_identity_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file.

    Raises CheckpointError, which names the file, when it is missing, damaged, larger than `MAX_BYTES`, or none that
    `write_identity_file` of this version wrote.
    """
    tensors, metadata = _read(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no identity (format {metadata.get('format')!r}); {REMEDY}")
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is an identity of version {metadata.get('version')!r}, and this one reads {VERSION}; {REMEDY}"
        )
    try:
        facts = json.loads(metadata.get("facts", ""))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its facts are not valid JSON ({error}); {REMEDY}") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: its facts are a {type(facts).__name__}, not fields by name; {REMEDY}")
    return tensors, facts


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; give the path that Identity.save wrote") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {REMEDY}") from error
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError, RecursionError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); {REMEDY}") from error
    return tensors, metadata
