"""Features of frozen models, computed once and kept on disk.

An entry is keyed by what decides its content: the data's hash, the model's hash and the preprocessing. It is built in
chunks of rows, so an interrupted build goes on where it stopped; every chunk is hashed when written and verified when
the entry is opened. Files: one memory-mapped `.safetensors` per field and `manifest.json`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faceclip.errors import DataError
from faceclip.storage.files import sync, write_json
from faceclip.storage.hashes import bytes_hash
from faceclip.storage.shards import DTYPES, map_safetensors

CHUNK = 256
_FORMAT = "safetensors"
_NAMES = {np.dtype(code).str: name for name, code in DTYPES.items()}  # of types, in the file's header
Builder = Callable[[int, int], Mapping[str, NDArray]]


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
    key = bytes_hash(facts.encode())[:20]
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
            manifest["chunks"].append({field: bytes_hash(values) for field, values in rows.items()})
            write_json(folder / "manifest.json", manifest, alone=True)
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
        sync(file)


def _verify(folder: Path, arrays: Mapping[str, NDArray], expected: dict[str, str], number: int, count: int) -> None:
    start, stop = number * CHUNK, min((number + 1) * CHUNK, count)
    for field, values in arrays.items():
        if bytes_hash(np.ascontiguousarray(values[start:stop])) != expected.get(field):
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
