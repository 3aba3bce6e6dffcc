"""Checks that the description files of a folder name only files below that folder.

`datasets` would follow addresses and paths to other places in them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from faceclip.data.row_files import is_plain
from faceclip.errors import DataError

_CARDS = ("README.md", ".huggingface.yaml")  # `datasets` reads both


def check_card(folder: Path) -> None:
    """Raises DataError where the `configs:` of the folder's card cannot be read or name something outside of it."""
    for name in _CARDS:
        card = folder / name
        if not card.is_file():
            continue
        text = card.read_text(encoding="utf-8", errors="replace")
        if name == "README.md":
            lines = text.lstrip("\ufeff").splitlines()
            if not lines or lines[0].strip() != "---":
                continue
            ends = [number for number, line in enumerate(lines) if number and line.strip() == "---"]
            text = "\n".join(lines[1 : ends[0] if ends else None])
        try:
            told = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise DataError(f"{card} cannot be read as YAML ({str(error)[:200]}): repair or remove it") from error
        configs = told.get("configs") if isinstance(told, dict) else None
        for config in configs if isinstance(configs, list) else [configs]:
            for key in ("data_files", "data_dir"):
                _check(card, f"configs, {key}", config.get(key) if isinstance(config, dict) else None)


def check_arrow(folder: Path) -> None:
    """Raises DataError where a `state.json` of `save_to_disk` cannot be read or names files of another folder."""
    for state in (folder / "state.json", *folder.glob("*/state.json")):
        if not state.is_file():
            continue
        try:
            told = json.loads(state.read_bytes())
            names = [item["filename"] for item in told["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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
