"""Reads YAML for configurations: mappings, lists and scalars, whose types are decided later by the fields.

The reader resolves no types, supports no tags and calls no constructors. Nesting, nodes and bytes are limited, so that
alias bombs and deep brackets end in an error of one line.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from faceclip.errors import ConfigError
from faceclip.settings.fields import clipped

_DEEPEST, _MOST_NODES, _LARGEST_FILE = 32, 20_000, 2**20
_MERGE = "<<"


class Plain(str):
    """An unquoted scalar: a text, number, boolean or null, depending on the type of its field."""

    __slots__ = ()


def read_yaml(path: Path, *, option: str = "") -> dict[str, Any]:
    """Reads the mapping in a YAML (or JSON) file, with scalars as in `parse_yaml`.

    Raises ConfigError that names the file, after the `option` that gave it.
    """
    path, where = Path(os.path.expanduser(path)), f"{option}{clipped(str(path), 400)}"
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{where}: expected a configuration file, this is a folder or a device")
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where}: cannot read the configuration file ({reason})") from error
    if len(content) > _LARGEST_FILE:
        raise ConfigError(f"{where}: a configuration file of at most {_LARGEST_FILE:,} bytes is expected")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not valid YAML ({error})") from error
    found = parse_yaml(text, where)
    if isinstance(found, Plain) and not found:
        return {}
    if not isinstance(found, dict):
        kind = "a list" if isinstance(found, list) else "a single value"
        raise ConfigError(f"{where}: expected keys and values at the top, got {kind}")
    return found


def parse_yaml(text: str, where: str, *, most: int = _MOST_NODES) -> Any:
    """Parses YAML to nested dicts (keys are text), lists, `str` for quoted scalars and `Plain` for others.

    most: values that it may have, aliases included. Raises ConfigError that begins with `where` for malformed, too
    large or too deep YAML, tags, repeated keys and several documents.
    """
    try:
        return _Builder(text, where, most).document()
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, IndexError) as error:  # the scanner's own, of odd escapes
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())[:300]})") from error


class _Builder:
    """Builds values from the parser's events. An alias yields the value of its anchor, and counts as much."""

    def __init__(self, text: str, where: str, most: int) -> None:
        self._events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self._where, self._most, self._nodes = where, most, 0
        self._anchors: dict[str, tuple[Any, int, int]] = {}  # value, number of its nodes, its height

    def document(self) -> Any:
        """Returns the only document of the stream, or an empty scalar."""
        value: Any = Plain("")
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refusal("expected one document", event)
                value, _ = self._value(next(self._events), 0)
        return value

    def _value(self, event: yaml.Event, depth: int) -> tuple[Any, int]:
        """Returns the value that begins with an event, and its height in levels."""
        before = self._nodes
        if isinstance(event, yaml.AliasEvent):
            if event.anchor is None or event.anchor not in self._anchors:
                raise self._refusal(f"alias *{(event.anchor or '')[:60]} has no anchor before it", event)
            value, size, height = self._anchors[event.anchor]
            self._count(size, depth + height, event)
            return value, height
        self._count(1, depth, event)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.tag is not None:
            raise self._refusal(f"tags such as {event.tag[:60]} are not supported", event)
        height = 0
        if isinstance(event, yaml.ScalarEvent):
            value = Plain(event.value) if event.style is None else event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                item, below = self._value(inner, depth + 1)
                value.append(item)
                height = max(height, below + 1)
        else:
            value, height = self._mapping(depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._nodes - before, height)
        return value, height

    def _mapping(self, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        height, merges = 0, False
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key, _ = self._value(event, depth + 1)
            if not isinstance(key, str):
                raise self._refusal("a key must be a single word", event)
            value, below = self._value(next(self._events), depth + 1)
            height = max(height, below + 1)
            is_merge = isinstance(key, Plain) and key == _MERGE
            if key in found or (is_merge and merges):  # readers differ in which of two counts
                raise self._refusal(f"key {str(key)[:60]!r} is given twice", event)
            if is_merge:
                merges = True
                for part in value if isinstance(value, list) else [value]:
                    if not isinstance(part, dict):
                        raise self._refusal("<< must name mappings", event)
                    merged = part | merged
            else:
                found[str(key)] = value
        return merged | found, height

    def _count(self, nodes: int, deepest: int, event: yaml.Event) -> None:
        self._nodes += nodes
        if self._nodes > self._most:
            raise self._refusal(f"more than {self._most:,} values, aliases included", event)
        if deepest > _DEEPEST:
            raise self._refusal(f"nested deeper than {_DEEPEST} levels", event)

    def _refusal(self, reason: str, event: yaml.Event) -> ConfigError:
        return ConfigError(f"{self._where}: {reason} (line {event.start_mark.line + 1 if event.start_mark else '?'})")
