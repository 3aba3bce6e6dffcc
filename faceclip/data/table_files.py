"""Decides which files are tables, by their endings, and which paths may be data."""

import bz2
import gzip
import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa

from faceclip.errors import ConfigError, DataError
from faceclip.storage.regular import open_regular, parse_json

KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".ndjson": "json",
}
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_BLANK = b"\xef\xbb\xbf \t\r"
_SYSTEM = ("/proc", "/sys", "/dev")  # their files are made when they are read, and some of them have no end
_MEMORY = "/dev/shm"


def table_kind(path: Path) -> str | None:
    """Returns the module of `datasets` that reads tables with this ending, in any case; None for other files."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in _PACKED:
        endings.pop()
    return KINDS.get(endings[-1]) if endings else None


def check_data_path(path: str, key: str) -> None:
    """Raises ConfigError, which names `key`, for a path that no system can have, for the system's own folders, and for
    pipes and devices."""
    shown = path if len(path) <= 200 else f"{path[:200]}…"
    try:
        special = Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir())
        real = Path(path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, or links in a circle
        why = str(getattr(error, "strerror", None) or error)[:200]
        raise ConfigError(f"{key}={shown!r}: no path of this system ({why}); name a folder or a table") from error
    if any(real.is_relative_to(place) for place in _SYSTEM) and not real.is_relative_to(_MEMORY):
        raise ConfigError(f"{key}={shown}: belongs to the system and holds no data; name a folder or a table")
    if special:
        raise ConfigError(f"{key}={shown}: a pipe or device, which cannot be read twice; name a folder or a table")


def csv_arguments(files: Sequence[str]) -> dict[str, Any]:
    """Arguments by which `datasets` reads every cell of CSV and TSV files as the text that stands there: no "NA"
    becomes a missing value, no "007" a number. The files are paths or addresses of the hub (`hf://…`).

    Raises DataError for a header that cannot be read, names a column twice or differs from that of the first file, and
    for a first row with more cells than it: pandas would move all cells to other columns.
    """
    separators = ["\t" if ".tsv" in (ending.lower() for ending in Path(file).suffixes) else "," for file in files]
    columns: list[str] = []
    for file, separator in zip(files, separators, strict=True):
        try:
            found = list(map(str, pd.read_csv(file, sep=separator, nrows=0, encoding="utf-8-sig").columns))
            top = pd.read_csv(
                file, sep=separator, nrows=2, header=None, encoding="utf-8-sig", dtype=str, na_filter=False
            )
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{file} cannot be read ({error}): expected one header and quoted cells in UTF-8"
            ) from error
        names = [name for name in top.iloc[0] if name]
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{file} has two columns {twice[0]!r}: give each a name of its own")
        columns = columns or found
        if (found, separator) != (columns, separators[0]):
            raise DataError(f"{file} has other columns or separators than {files[0]}: write them alike")
    kinds = datasets.Features({name: datasets.Value("string") for name in columns})
    return {"sep": separators[0], "keep_default_na": False, "features": kinds}


def check_json(file: Path) -> None:
    """Raises DataError for a JSON table with a row that is `null`, at which Arrow would end the program."""
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    try:
        with open_regular(file) as plain:
            opener = openers.get(file.suffix.lower())
            content = plain if opener is None else opener(plain)
            first = content.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            content.seek(0)
            if first == b"[":
                rows = parse_json(content.read().decode("utf-8-sig"))
                found = rows.index(None) + 1 if None in rows else None
            else:
                lines = enumerate(content, start=1)
                found = next((number for number, line in lines if line.lstrip(_BLANK).startswith(b"null")), None)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise DataError(f"{file} cannot be read ({error}): replace it and run again") from error
    if found:
        raise DataError(f"{file}, row {found}: it is null and no row; take it out")


def json_columns(features: datasets.Features | None) -> dict[str, Any]:
    """Returns the columns whose cells `datasets` keeps as JSON, because some are texts and others lists, with the forms
    of these cells."""
    return {name: kind for name, kind in (features or {}).items() if _holds_json(kind)}


def read_json_cells(row: Mapping[str, Any], columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a row with the values of its JSON cells, which a stream does not decode if it leaves pictures encoded.

    columns: result of `json_columns`. A cell that nests too deeply becomes empty.
    """
    return {**row, **{name: _read_json(kind, row.get(name)) for name, kind in columns.items()}} if columns else row


def _holds_json(kind: Any) -> bool:
    if isinstance(kind, Mapping):
        return any(map(_holds_json, kind.values()))
    inner = getattr(kind, "feature", None)
    return type(kind).__name__ == "Json" or (inner is not None and _holds_json(inner))


def _read_json(kind: Any, cell: Any) -> Any:
    if isinstance(kind, Mapping) and isinstance(cell, Mapping):
        return {name: _read_json(inner, cell.get(name)) for name, inner in kind.items()}
    if isinstance(cell, list):
        return [_read_json(kind.feature, item) for item in cell]
    if type(kind).__name__ != "Json" or not isinstance(cell, str) or cell[:1] not in ('"', "[", "{"):
        return cell  # `datasets` writes the text 007 and the number 7 alike: it stays a text
    try:
        return json.loads(cell)
    except ValueError:  # a text that only begins like JSON
        return cell
    except RecursionError:
        return None


def column_kind(column: pa.DataType) -> str:
    """Returns the kind of a column's values; `datasets` converts values of the same kind into each other."""
    if pa.types.is_null(column):
        return "nothing"
    if pa.types.is_struct(column):
        return "structures"
    return "lists" if pa.types.is_nested(column) else "single values"
