"""Folders of pictures with captions beside them, as rows.

    DIR[/SPLIT]/PERSON/NAME.jpg with NAME.txt      (or .caption) one caption per line; the folder says who it is
    DIR[/SPLIT]/metadata.jsonl (or .csv)           `file_name` and any other columns (caption, identity, box, …)

If there is a metadata file, only its rows count; otherwise the folder of a picture names its person.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

from faceclip.data.cells import RejectedRecord
from faceclip.data.image_store import files_below, is_file, with_slashes
from faceclip.errors import DataError, EmptyDatasetError
from faceclip.storage.regular import open_regular

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
UNREAD = frozenset({".heic", ".heif", ".avif"})  # pictures that nothing here decodes: counted, not passed over
TEXTS = (".txt", ".caption")  # the first that is there counts
TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")  # that hold rows of pictures
METADATA = ("metadata.jsonl", "metadata.csv")
MAX_TEXTS = 1 << 20  # bytes of a file with captions


def find_rows(root: Path, split: str, validation: str = "validation") -> tuple[list[dict[str, Any]], list[Path]]:
    """Returns the rows of a split in the order of their names, and all files that determine their content.

    DIR/SPLIT is read if it exists; otherwise DIR without DIR/VALIDATION is the split "train". Raises DataError for a
    missing split or a damaged metadata file, and EmptyDatasetError if there are no pictures.
    """
    base = root / split
    other = root / validation
    if not base.is_dir():
        if split != "train":
            raise DataError(
                f"{root} has no folder {split!r}: make one, name another by data.validation, or set "
                "data.validation_share=0.05 to keep some persons of the training split for validation"
            )
        base = root
    tables = [base / name for name in METADATA if (base / name).is_file()]
    if not tables:
        _check_passed_over(root, base)
    rows, files = _from_metadata(tables[0]) if tables else _from_tree(base, other)
    if not rows:
        raise EmptyDatasetError(f"{base} holds no pictures ({', '.join(sorted(SUFFIXES))}): check data.path")
    return rows, files


def _check_passed_over(root: Path, base: Path) -> None:
    """Raises DataError if a table beside the pictures, or above the folder of the split, would be ignored."""
    for folder in dict.fromkeys((base, root)):
        entries = sorted(folder.iterdir())
        pictures = {file.stem for file in entries if file.suffix.lower() in SUFFIXES}  # with notes of their own
        for file in entries:
            if (
                file.suffix.lower() in TABLES
                and file.stem not in pictures
                and file.name[0] != "."
                and not file.is_dir()
            ):
                raise DataError(
                    f"{file} would be passed over beside the pictures: name it {base / METADATA[0]} (or .csv, with "
                    f"`file_name` relative to it), read it by data.path={file}, or take it out of {root}"
                )


def _from_tree(base: Path, other: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    rows, files = [], []
    everything = sorted(files_below(base))
    found = [file for file in everything if file.suffix.lower() in SUFFIXES | UNREAD]
    texts = {(file.with_suffix(""), file.suffix.lower()): file for file in everything if file.suffix.lower() in TEXTS}
    readable = {file.with_suffix("") for file in found if file.suffix.lower() in SUFFIXES}
    for picture in found:
        if picture.suffix.lower() in UNREAD and picture.with_suffix("") in readable:
            continue  # a copy that can be read lies beside it
        relative = picture.relative_to(base)
        if base != other and picture.is_relative_to(other):
            continue
        beside = [texts[picture.with_suffix(""), kind] for kind in TEXTS if (picture.with_suffix(""), kind) in texts]
        text = next((file for file in beside if file.is_file()), None)
        captions = _lines(text) if text else []
        # Nested folders are one person each, by their whole path.
        person = relative.parent.as_posix() if len(relative.parts) > 1 else ""
        row = {"file_name": relative.as_posix(), "image": str(picture.absolute()), "caption": captions}
        rows.append(row | {"identity": person})
        # A link to nothing and a pipe stay rows, which are counted when they are read.
        files += [file for file in (picture, text) if file is not None and file.is_file()]
    return rows, files


def _lines(text: Path) -> list[str] | bytes:
    """Returns the lines of a caption file, or its bytes if they are not UTF-8, for which the row is later rejected.

    Of a file that is too large for captions, only its beginning is returned, as one line that is rejected as too long.
    """
    with open_regular(text) as file:
        content = file.read(MAX_TEXTS + 1)
    if len(content) > MAX_TEXTS:
        return [content.decode("utf-8", errors="replace")]
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return content


def _from_metadata(table: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    rows, files = [], [table]
    for number, row in enumerate(_read(table), start=1):
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise DataError(f"{table}, entry {number}: expected an object with `file_name`, a path beside this file")
        picture = table.parent / with_slashes(row["file_name"], table.parent)
        rows.append(row | {"image": str(picture.absolute())})
        try:
            inside, found = picture.resolve().is_relative_to(table.parent.resolve()), is_file(picture)
        except (ValueError, OSError, RuntimeError, RejectedRecord):  # no path: the row is counted when it is read
            continue
        if not inside:
            raise DataError(f"{table}, entry {number}: {row['file_name']!r} lies outside of {table.parent}")
        if found:
            files.append(picture)
    return rows, files


def _read(table: Path) -> list[Any]:
    try:
        with io.TextIOWrapper(open_regular(table), encoding="utf-8-sig") as file:  # spreadsheets begin it with a mark
            text = file.read()
        if table.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text), strict=True))
        else:  # not splitlines(), which splits at characters that JSON may hold inside of a text
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        form = "one header and quoted cells" if table.suffix == ".csv" else "each line one JSON object"
        raise DataError(f"{table} cannot be read ({error}): expected {form} in UTF-8") from error
    for number, row in enumerate(rows, start=1):
        if table.suffix == ".csv" and None in row:
            raise DataError(f"{table}, entry {number}: more cells than the header names; quote texts with commas")
    return rows
