"""Reads the rows of any data set in a fixed order: local parquet, arrow, JSON or webdataset files, image folders, hub
data.

Local files are streamed, so nothing is copied into a cache of `datasets`. Pictures stay encoded, because their headers
must be checked before they are decoded.
"""

import itertools
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError

from faceclip.data import image_folder
from faceclip.data.declared_files import check_arrow, check_card
from faceclip.data.image_store import ARCHIVE_ERRORS, files_below
from faceclip.data.mapping import DataConfig
from faceclip.data.table_files import (
    KINDS,
    check_json,
    column_kind,
    csv_arguments,
    json_columns,
    read_json_cells,
    table_kind,
)
from faceclip.errors import ConfigError, DataError, EmptyDatasetError
from faceclip.storage.hashes import content_hash
from faceclip.storage.loading import DAMAGE

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# `datasets` says by TypeError that a file's column has another type than that of the first.
_READ_ERRORS = (pa.ArrowException, *ARCHIVE_ERRORS, *DAMAGE, StopIteration, DatasetGenerationError)
_TABLES = {kind: KINDS[kind] for kind in (".parquet", ".arrow", ".tar", ".jsonl", ".csv", ".tsv")}
_ARCHIVES = (".zip", ".7z", ".rar", ".tgz")
_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
Position = dict[str, Any]
Rows = Callable[..., Iterator[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """One split. `rows(start)` yields the rows from number `start` on, always the same; `content_hash` identifies them.

    count: number of rows, or None if only reading to the end tells. folder: base of relative picture paths. position():
    the end of the rows read so far, as JSON, or None if a start number suffices; `rows(start, position)` continues
    there without reading earlier files again, which a remote stream would have to download.
    """

    name: str
    layout: str
    columns: tuple[str, ...]
    content_hash: str
    count: int | None
    folder: Path | None
    rows: Rows
    position: Callable[[], Position | None] = lambda: None


def find_layout(config: DataConfig) -> str:
    """Returns the layout of the data, which is found for `config.layout="auto"`.

    Raises ConfigError if no data are named or a local folder does not exist, and DataError if the path is neither data
    nor a hub id.
    """
    path = Path(config.path)
    if not config.path:
        raise ConfigError("data: name the data set, as in data=DIR or data.path=OWNER/NAME")
    if config.layout == "local" and not path.exists():
        raise ConfigError(
            f"data={path}: no such folder; make it by `python -m faceclip.people --out {path}`, or name a hub data set "
            "by data.path=OWNER/NAME"
        )
    if config.layout not in ("auto", "local"):
        return config.layout
    if path.is_dir():
        if (path / "dataset.json").is_file():
            return "portraits"
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return "arrow"
        seen = itertools.islice(files_below(path), 5000)
        holds = {file.suffix.lower() for file in seen if file.name != "metadata.parquet"}
        # Tables of rows outweigh pictures beside them, which the rows may name.
        if holds & {".parquet", ".arrow", ".tar"}:
            return "files"
        lists = {".jsonl", ".json", ".csv", ".tsv"}
        return "files" if holds & lists and not holds & image_folder.SUFFIXES else "image_folder"
    if path.is_file():
        if path.suffix.lower() in _ARCHIVES:
            raise DataError(f"data.path={path}: an archive, which is not read as it is: unpack it and name its folder")
        if table_kind(path) is None:
            raise DataError(
                f"data.path={path}: not a table by its ending ({', '.join(KINDS)}): name a folder or a table, or set "
                "data.layout=files to read it as JSON lines"
            )
        return "files"
    if _HUB_ID.fullmatch(config.path):
        return "hub"
    raise DataError(f"data.path={config.path}: no such file or folder, and not a hub id of the form owner/name")


def check_own_layout(config: DataConfig, used: Set[str]) -> None:
    """Raises ConfigError for settings beyond `used` that have no effect on data in this project's own layout."""
    usual = DataConfig()
    used = used | {"path", "layout"}
    unused = [
        f"data.{f.name}"
        for f in fields(config)
        if f.name not in used and getattr(config, f.name) != getattr(usual, f.name)
    ]
    if unused:
        raise ConfigError(
            f"data.path={config.path} is in this project's own layout, which is read as it is: leave out "
            f"{', '.join(unused)}, which would change nothing, or set data.layout=files"
        )


def open_source(config: DataConfig, split: str, memo: Path) -> RowSource:
    """Opens one split.

    memo: JSON file that keeps digests of local files. Raises DataError if the data or the split do not exist or its
    files do not belong together, and EmptyDatasetError for a parquet file without rows or columns.
    """
    layout, path = find_layout(config), Path(config.path)
    if layout == "facecaption" and path.is_dir() and not any(path.rglob("*.parquet")):
        raise DataError(f"data.path={path}: no parquet file of FaceCaption-15M there: name the file or its folder")
    if layout == "arrow":
        return _from_arrow(path, split, memo)
    if layout != "image_folder":
        return _from_datasets(config, layout, split, memo)
    rows, files = image_folder.find_rows(path, split, config.validation)

    def listed(start: int, position: Position | None = None) -> Iterator[Mapping[str, Any]]:
        return itertools.islice(rows, start, None)

    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return RowSource(
        name=str(path),
        layout=layout,
        columns=columns,
        content_hash=content_hash(files, path, memo),
        count=len(rows),
        folder=path,
        rows=listed,
    )


def _from_arrow(path: Path, split: str, memo: Path) -> RowSource:
    """Opens a folder that `save_to_disk` wrote."""
    check_arrow(path)
    found = _guard(f"data.path={path}", lambda: datasets.load_from_disk(str(path)))
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise _no_split(str(path), split, list(found))
        found = found[split]
    elif split != "train":
        raise _no_split(str(path), split, ["train"])
    digest = content_hash([Path(item["filename"]) for item in found.cache_files], path, memo)
    return _stream(found, str(path), "arrow", digest, len(found), path)


def _from_datasets(config: DataConfig, layout: str, split: str, memo: Path) -> RowSource:
    path = Path(config.path)
    arguments: dict[str, Any] = {"path": config.path}
    if path.is_file():
        arguments = {"path": table_kind(path) or "json", "data_files": {"train": str(path)}}
    elif path.is_dir():
        check_card(path)
        arguments |= _tables_beside_pictures(path)
    arguments |= {key: getattr(config, key) for key in ("name", "revision") if getattr(config, key)}
    name = f"data.path={config.path}"
    builder = _guard(name, lambda: datasets.load_dataset_builder(**arguments))
    files = builder.config.data_files
    if files is not None and split not in files:
        raise _no_split(config.path, split, list(map(str, files)))
    if files is not None and path.is_dir():
        _check_left_out(config, {Path(str(file)) for part in files.values() for file in part})
    chosen = [str(file) for file in files[split]] if files is not None else []
    texts = bool(chosen) and all(table_kind(Path(file)) == "csv" for file in chosen)
    if texts:
        arguments |= _guard(name, lambda: csv_arguments(chosen))
    if path.exists():
        for file in chosen:
            if file.lower().endswith(".tar"):
                _check_whole(Path(file))
        for file in chosen:
            if table_kind(Path(file)) == "json":
                check_json(Path(file))
        _check_tables([file for file in chosen if file.lower().endswith(".parquet")])
        digest = content_hash([Path(file) for file in chosen], path if path.is_dir() else path.parent, memo)
    else:
        # Addresses of hub files hold the commit; what changes there changes its address.
        facts = [config.path, config.name, split, chosen, getattr(files and files[split], "origin_metadata", None)]
        digest = json.dumps([*facts, "cells are texts"] if texts else facts, default=str)
    stream = config.streaming or path.exists()
    found = _guard(name, lambda: datasets.load_dataset(**arguments, split=split, streaming=stream))
    count = None if stream else len(found)
    folder = path if path.is_dir() else path.parent if path.is_file() else None
    return _stream(found, config.path, layout, digest, count, folder)


def _tables_beside_pictures(path: Path) -> dict[str, Any]:
    """Arguments by which `datasets` reads the tables of a folder that it would not read by itself: those beside more
    pictures, since it takes the most frequent ending for the folder's kind, and those with endings in capital letters.

    The split of a table is a word in its name or in that of its folders. Raises DataError for a pipe or device.
    """
    if _says_what_is_read(path):
        return {}
    names = [file for file in files_below(path) if file.suffix.lower() in {*_TABLES, *image_folder.SUFFIXES}]
    kinds = Counter(file.suffix.lower() for file in names)
    table = next((suffix for suffix in _TABLES if kinds[suffix]), None)
    if table is None:
        return {}
    tables = [file for file in names if file.suffix.lower() == table]
    small = all(file.suffix == table for file in tables)
    if small and (len(kinds) == 1 or kinds.most_common(1)[0][0] in _TABLES):
        return {}
    splits = defaultdict(list)
    for file in tables:
        if not file.is_file():
            raise DataError(f"{file} is a pipe, a device or a link to nothing: put a file there, or take it out")
        splits[_split_of(file.relative_to(path))].append(str(file))
    unnamed = splits.pop("", [])  # where others have a name, `_check_left_out` names these
    return {"path": _TABLES[table], "data_files": dict(splits) or {"train": unnamed}}


def _split_of(relative: Path) -> str:
    """Returns the split that a word in a file's name or folders names; "" if there is none."""
    words = re.findall(r"[a-z]+", relative.with_suffix("").as_posix().lower())
    return next((split for split, names in _SPLITS.items() if names & set(words)), "")


def _says_what_is_read(path: Path) -> bool:
    """Returns whether a folder's card names the files of its splits."""
    card = path / "README.md"
    return card.is_file() and "configs:" in card.read_text(encoding="utf-8", errors="replace")


def _check_left_out(config: DataConfig, read: set[Path]) -> None:
    """Raises DataError for tables beside those of the splits that belong to none: `datasets` goes by the names of
    files, and as soon as some name a split it passes over those that do not."""
    path = Path(config.path)
    if _says_what_is_read(path):
        return
    kinds = {file.suffix.lower() for file in read} & _TABLES.keys()
    real = {file.resolve() for file in read}
    pictures = Path(config.images).resolve() if config.images else None
    left = [
        file
        for file in files_below(path)
        if file.suffix.lower() in kinds
        and file.resolve() not in real
        and not (pictures and file.resolve().is_relative_to(pictures))
    ]
    if left:
        raise DataError(
            f"{left[0]} and {len(left) - 1} more would not be read: the names of other files say their splits "
            f"(as {min(read).name}); name them alike, take them out of {path}, or let its README.md say what is read "
            "(`configs:`, as on the hub)"
        )


def _check_tables(files: list[str]) -> None:
    """Raises EmptyDatasetError for a parquet file without rows or columns, at which `datasets` stops as at a damaged
    one, and DataError where the first file, whose columns `datasets` takes for all, lacks one of another or has single
    values, lists or structures where another has something else."""
    columns: dict[str, str] = {}  # name → the first file that has it
    kinds: dict[str, tuple[str, str]] = {}  # name → what the first file holds, which is that file
    for file in files:
        metadata = _guard(file, partial(pq.read_metadata, file))
        if not metadata.num_rows or not metadata.num_columns:
            what = "rows" if metadata.num_columns else "columns"
            raise EmptyDatasetError(f"{file} has no {what}: write it again, or take it out of the folder")
        for field in metadata.schema.to_arrow_schema():
            columns.setdefault(field.name, file)
            kind, first = kinds.setdefault(field.name, (column_kind(field.type), file))
            if column_kind(field.type) not in (kind, "nothing"):
                raise DataError(
                    f"{file}: column {field.name!r} holds {column_kind(field.type)}, in {first} {kind}: write "
                    "one of them again, or take it out of the folder"
                )
    lacking = {name: file for name, file in columns.items() if file != files[0]}
    if lacking:
        names, other = ", ".join(map(repr, lacking)), next(iter(lacking.values()))
        raise DataError(
            f"{files[0]} lacks column {names}, which {other} has: write it again, or take it out of the folder"
        )


def _check_whole(tar: Path) -> None:
    """Raises DataError for a truncated tar file, which `datasets` silently reads up to the cut."""
    try:
        size = tar.stat().st_size
        with tar.open("rb") as file:
            file.seek(max(0, size - tarfile.BLOCKSIZE))
            if size and size % tarfile.BLOCKSIZE == 0 and not any(file.read()):
                return  # ends in a block of zeros, as a tar file must
        # Some writers leave the end out: then the last member must end with the file.
        with tarfile.open(tar) as archive:
            archive.getmembers()
            if archive.offset == size:
                return
            reason = f"after {archive.offset:,} bytes comes no whole member"
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = str(error)
    raise DataError(f"{tar} is damaged or cut off ({reason}): fetch or write it again, or take it out of the folder")


def _stream(
    found: datasets.Dataset | datasets.IterableDataset,
    name: str,
    layout: str,
    digest: str,
    count: int | None,
    folder: Path | None,
) -> RowSource:
    if isinstance(found, datasets.IterableDataset):
        # A stream may not know its columns yet, so pictures are left encoded in all of them.
        # Where the kinds of columns are not known (CSV), nothing is decoded anyhow.
        found = found.decode(False) if found.features else found
    else:
        for column, kind in found.features.items():
            if isinstance(kind, datasets.Image):
                found = found.cast_column(column, datasets.Image(decode=False))
    mixed = json_columns(found.features) if isinstance(found, datasets.IterableDataset) else {}
    columns = found.features or _guard(name, lambda: next(iter(found), {}))
    # A state fits only the chain of steps that gave it; a stream that began by skipping has another chain.
    streamed = known = isinstance(found, datasets.IterableDataset)

    def rows(start: int, position: Position | None = None) -> Iterator[Mapping[str, Any]]:
        nonlocal known
        reading, known = found, streamed
        if streamed:  # None, too: `datasets` begins every later reading where an earlier one was told to begin
            _guard(name, lambda: found.load_state_dict(position))
        if start and (position is None or not streamed):
            reading, known = found.skip(start), False
        iterator = iter(reading)
        while (row := _guard(name, lambda: next(iterator, None))) is not None:
            yield read_json_cells(row, mixed)

    def position() -> Position | None:
        return found.state_dict() if known else None

    return RowSource(
        name=name,
        layout=layout,
        columns=tuple(columns),
        content_hash=f"{digest}, cells of JSON are read" if mixed else digest,
        count=count,
        folder=folder,
        rows=rows,
        position=position,
    )


def _guard(name: str, action: Callable[[], Any]) -> Any:
    """Context that turns errors of `datasets` and Arrow into a DataError that names the source."""
    try:
        return action()
    except ConnectionError as error:
        raise DataError(
            f"{name}: the hub cannot be reached ({error}): check the id and the connection, or give a local folder"
        ) from error
    except _READ_ERRORS as error:
        raise DataError(f"{name} cannot be read ({error}): a file may be damaged; replace it and run again") from error


def _no_split(name: str, split: str, known: list[str]) -> DataError:
    return DataError(
        f"{name} has no split {split!r}, only {', '.join(known)}: name it by data.train or data.validation, or set "
        "data.validation_share=0.05 to keep some persons of the training split for validation"
    )
