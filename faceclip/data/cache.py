"""Features of frozen models, computed once and kept on disk.

An entry is keyed by what decides its content: the data's hash, the model's hash and the preprocessing. It is built in
chunks of rows, so an interrupted build goes on where it stopped; every chunk is hashed when written and verified when
the entry is opened. Files: one memory-mapped `.npy` per field and `manifest.json`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.errors import DataError

CHUNK = 256
Builder = Callable[[int, int], Mapping[str, NDArray]]


def module_hash(module: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, types and values of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cached_features(
    root: Path, name: str, *, data_hash: str, model_hash: str, preprocessing: str, count: int, build: Builder,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray]:  # fmt: skip
    """Memory-mapped fields of `count` rows each, built on first use.

    Args:
        root: folder of all entries. name: a word for people. data_hash, model_hash, preprocessing: the key.
        build: rows [start, stop) → arrays of stop − start rows, always the same fields, shapes and types.
        progress: called with (rows done, count).

    Raises:
        DataError: a file that was changed or truncated since it was written (the message says what to delete), or
            a builder that changes its mind about shapes.
    """
    key = hashlib.sha256(f"{data_hash}|{model_hash}|{preprocessing}|{count}|{CHUNK}".encode()).hexdigest()[:20]
    folder = Path(root) / f"{name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _read_manifest(folder)
    done = len(manifest["chunks"])
    chunks = -(-count // CHUNK)
    arrays = _open(folder, manifest, "r+" if done < chunks else "r")
    for number in range(done):
        _verify(folder, arrays, manifest["chunks"][number], number, count)
    for number in range(done, chunks):
        start, stop = number * CHUNK, min((number + 1) * CHUNK, count)
        rows = build(start, stop)
        if not arrays:
            manifest["fields"] = {k: [list(v.shape[1:]), v.dtype.str] for k, v in rows.items()}
            arrays = {
                k: np.lib.format.open_memmap(folder / f"{k}.npy", "w+", v.dtype, (count, *v.shape[1:]))
                for k, v in rows.items()
            }
        for field, values in rows.items():
            if values.shape != (stop - start, *arrays[field].shape[1:]):
                raise DataError(f"cache {folder.name}: {field} has shape {values.shape} for rows {start} to {stop}")
            arrays[field][start:stop] = values
            arrays[field].flush()
        manifest["chunks"].append(_digests(arrays, start, stop))
        _write_manifest(folder, manifest)
        if progress:
            progress(stop, count)
    return _open(folder, manifest, "r")


def _digests(arrays: Mapping[str, NDArray], start: int, stop: int) -> dict[str, str]:
    return {k: hashlib.sha256(np.ascontiguousarray(v[start:stop])).hexdigest() for k, v in arrays.items()}


def _verify(folder: Path, arrays: Mapping[str, NDArray], expected: dict[str, str], number: int, count: int) -> None:
    start, stop = number * CHUNK, min((number + 1) * CHUNK, count)
    if _digests(arrays, start, stop) != expected:
        raise DataError(f"{folder}: rows {start} to {stop} differ from what was written: delete the folder")


def _open(folder: Path, manifest: dict, mode: str) -> dict[str, NDArray]:
    try:
        return {k: np.load(folder / f"{k}.npy", mmap_mode=mode) for k in manifest["fields"]}
    except (OSError, ValueError) as error:
        raise DataError(f"cached features {folder} cannot be read ({error}): delete {folder}") from error


def _read_manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    if not path.exists():
        return {"fields": {}, "chunks": []}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is corrupt ({error}): delete {folder}") from error


def _write_manifest(folder: Path, manifest: dict) -> None:
    temporary = folder / "manifest.json.tmp"
    with temporary.open("w") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "manifest.json")
