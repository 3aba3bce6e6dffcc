"""Features of frozen models, computed once and kept on disk.

An entry is keyed by what decides its content: the data's hash, the model's hash and the preprocessing. It is built in
chunks of rows, so an interrupted build goes on where it stopped; every chunk is hashed when written and verified when
the entry is opened. Files: one memory-mapped `.safetensors` per field and `manifest.json`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.errors import ConfigError, DataError
from faceclip.storage.locks import locked
from faceclip.storage.shards import DTYPES, map_safetensors

CHUNK = 256
_FORMAT = "safetensors"
_NAMES = {np.dtype(code).str: name for name, code in DTYPES.items()}  # of types, in the file's header
Builder = Callable[[int, int], Mapping[str, NDArray]]


def module_hash(module: torch.nn.Module) -> str:
    """SHA-256 over a module's class, its configuration, and names, shapes, types and values of its state.

    The configuration decides what the weights compute: activation, number of heads, normalization of pixels. A note of
    the weights' licence does not.
    """
    config = {
        name: value
        for name, value in getattr(module, "config", {}).items()
        if not name.startswith("_") and name != "licence"
    }
    digest = hashlib.sha256(json.dumps([type(module).__name__, config], sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def locked_cache(cache: Path) -> Iterator[bool]:
    """One process at a time in a cache folder: the ranks of a distributed run, and several runs on one data set, must
    not write over each other. Not to be nested: the inner one would wait for the outer one.

    Yields whether the folder can be written; on read-only storage nobody builds and nobody needs the lock.
    """
    with ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(cache / ".lock"))
            writable = True
        except OSError as error:
            if not cache.is_dir():
                raise ConfigError(f"cache={cache}: cannot be made ({error.strerror}); name a writable one") from error
            writable = False
        yield writable


def cached_features(
    root: Path,
    name: str,
    *,
    data_hash: str,
    model_hash: str,
    preprocessing: str,
    count: int,
    build: Builder,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray]:
    """Memory-mapped fields of `count` rows each, built on first use; where several processes may build, under
    `locked_cache(root)`.

    Args:
        root: folder of all entries. name: a word for people. data_hash, model_hash, preprocessing: the key.
        build: rows [start, stop) → arrays of stop − start rows, always the same fields, shapes and types.
        progress: called with (rows done, count).

    Raises:
        DataError: a file that was changed or truncated since it was written (the message says what to delete), a
            disk that is full, or a builder that changes its mind about shapes.
    """
    facts = f"{data_hash}|{model_hash}|{preprocessing}|{count}|{CHUNK}|{_FORMAT}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:20]
    folder = Path(root) / f"{name}-{key}"
    manifest = _read_manifest(folder)
    done = len(manifest["chunks"])
    chunks = -(-count // CHUNK)
    arrays = _open(folder, manifest)
    for number in range(done):
        _verify(folder, arrays, manifest["chunks"][number], number, count)
    for number in range(done, chunks):
        start, stop = number * CHUNK, min((number + 1) * CHUNK, count)
        rows = {field: np.ascontiguousarray(values) for field, values in build(start, stop).items()}
        if not manifest["fields"]:
            manifest["fields"] = {field: [list(v.shape[1:]), v.dtype.str] for field, v in rows.items()}
        for field, values in rows.items():
            shape, dtype = manifest["fields"][field]
            if values.shape != (stop - start, *shape) or values.dtype.str != dtype:
                raise DataError(
                    f"cache {folder.name}: {field} has shape {values.shape} and type {values.dtype} for rows {start} "
                    f"to {stop}, before {shape} and {dtype}"
                )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for field, values in rows.items():
                _write_rows(folder / f"{field}.safetensors", field, values, start, count)
            manifest["chunks"].append({field: hashlib.sha256(values).hexdigest() for field, values in rows.items()})
            _write_manifest(folder, manifest)
        except OSError as error:
            raise DataError(
                f"cannot write {folder} ({error}): free space on this disk or make the folder writable, and run "
                "again; it goes on here"
            ) from error
        if progress:
            progress(stop, count)
    return _open(folder, manifest)


def _write_rows(path: Path, field: str, values: NDArray, start: int, count: int) -> None:
    """Rows from number `start` of a safetensors file of `count` rows, which is made when missing.

    Plain writes, not a memory map: on a full disk a map ends the process by SIGBUS.
    """
    row = values.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    entry = {"dtype": _NAMES[values.dtype.str], "shape": [count, *values.shape[1:]], "data_offsets": [0, count * row]}
    words = json.dumps({field: entry}).encode()
    words += b" " * (-len(words) % 8)  # the numbers begin at a multiple of 8
    header = len(words).to_bytes(8, "little") + words
    with path.open("r+b" if start else "wb") as file:
        if start == 0:
            file.write(header)
            file.truncate(len(header) + count * row)
        file.seek(len(header) + start * row)
        file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _verify(folder: Path, arrays: Mapping[str, NDArray], expected: dict[str, str], number: int, count: int) -> None:
    start, stop = number * CHUNK, min((number + 1) * CHUNK, count)
    for field, values in arrays.items():
        if hashlib.sha256(np.ascontiguousarray(values[start:stop])).hexdigest() != expected.get(field):
            raise DataError(
                f"{folder / field}.safetensors is corrupt: rows {start} to {stop} differ from what was written; delete "
                f"the folder {folder}, it is built again"
            )


def _open(folder: Path, manifest: dict) -> dict[str, NDArray]:
    try:
        return {k: map_safetensors(folder / f"{k}.safetensors")[k] for k in manifest["fields"]}
    except (OSError, ValueError, KeyError) as error:
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
