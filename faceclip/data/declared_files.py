"""Checks that the description files of a folder name only files below that folder.

`datasets` would follow addresses and paths to other places in them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from faceclip.data.row_files import is_plain
from faceclip.errors import DataError
from faceclip.storage.loading import DAMAGE
from faceclip.storage.regular import parse_json, read_regular

_MOST_VALUES, _DEEPEST = 500_000, 64
_CARDS = ("README.md", ".huggingface.yaml")  # `datasets` reads both


def check_card(folder: Path) -> None:
    """Raises DataError if the `configs:` of the folder's card cannot be read or name files outside of the folder."""
    for name in _CARDS:
        card = folder / name
        if not card.is_file():
            continue
        try:
            text = read_regular(card).decode("utf-8", errors="replace")
        except OSError as error:
            raise DataError(f"{card} cannot be read ({error}): repair or remove it") from error
        if name == "README.md":
            lines = text.lstrip("\ufeff").splitlines()
            if not lines or lines[0].strip() != "---":
                continue
            ends = [number for number, line in enumerate(lines) if number and line.strip() == "---"]
            text = "\n".join(lines[1 : ends[0] if ends else None])
        try:
            _check_aliases(text)
            told = yaml.safe_load(text)
        except (yaml.YAMLError, *DAMAGE) as error:  # constructors of tags raise what they like
            raise DataError(f"{card} cannot be read as YAML ({str(error)[:200]}): repair or remove it") from error
        configs = told.get("configs") if isinstance(told, dict) else None
        for config in configs if isinstance(configs, list) else [configs]:
            for key in ("data_files", "data_dir"):
                _check(card, f"configs, {key}", config.get(key) if isinstance(config, dict) else None)


def check_arrow(folder: Path) -> None:
    """Raises DataError if a `state.json` of `save_to_disk` cannot be read or names files of another folder."""
    for state in (folder / "state.json", *folder.glob("*/state.json")):
        if not state.is_file():
            continue
        try:
            told = parse_json(read_regular(state))
            names = [item["filename"] for item in told["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{state} is corrupt ({error!r}): save the data set again") from error
        _check(state, "_data_files", names)


def _check_aliases(text: str) -> None:
    """Raises ValueError for YAML whose aliases expand to far more than is written, or contain themselves."""
    sizes: dict[str, int] = {}
    total = 0
    open_ones: list[tuple[str | None, int]] = []  # anchor of a collection that has begun; the values before it
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"alias *{event.anchor} stands in what it names, or names nothing")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(open_ones) > _DEEPEST:
                raise ValueError(f"nested deeper than {_DEEPEST} levels")
            open_ones.append((event.anchor, total))
            if event.anchor:
                sizes.pop(event.anchor, None)
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_ones.pop()
            if anchor:
                sizes[anchor] = total - before
        if total > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values, aliases included")


def _check(file: Path, key: str, names: Any) -> None:
    for text in _texts(names):
        if not is_plain(text):
            raise DataError(
                f"{file}: {key} names {text[:200]!r}: only paths below {file.parent} are read; copy the files there"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):  # a split and its path, or splits and their paths
        yield from _texts(list(value.values()))
