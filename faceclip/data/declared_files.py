"""Checks that the description files of a folder name only files below that folder.

`datasets` would follow addresses and paths to other places in them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import REGEX_YAML_BLOCK

from faceclip.data.row_files import is_plain
from faceclip.errors import ConfigError, DataError
from faceclip.settings.yaml_text import parse_yaml
from faceclip.storage.regular import parse_json, read_regular

_MOST_VALUES = 500_000
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
            block = REGEX_YAML_BLOCK.search(text.lstrip("\ufeff"))  # where `datasets` finds it
            if block is None:
                continue
            text = block[2]
        try:
            told = parse_yaml(text, name, most=_MOST_VALUES)
        except ConfigError as error:
            raise DataError(f"{folder}: {str(error)[:200]}: repair or remove this file") from error
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
