"""Configuration: keyword-only dataclasses, YAML presets and files, and one dialect of command-line words.

    python -m COMMAND [--preset NAME] [--config FILE.yaml] [key.sub=value | --key.sub value …]

Later sources win: defaults of the dataclass, preset, file, words. A preset named `tiny` is used when a command has one
and none is named. Every key must be a field; every value must have the field's type. `--images-per-arm 10`,
`--images-per-arm=10` and `images_per_arm=10` say the same; `--flag` and `--no-flag` set a bool.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from faceclip.errors import ConfigError
from faceclip.settings.fields import LONGEST_KEY, about, check_bounds, clipped, is_required, options, type_hints
from faceclip.settings.help import describe, given
from faceclip.settings.values import check_finite, coerce, from_text, shown
from faceclip.settings.yaml_text import parse_yaml, read_yaml

T = TypeVar("T")
DEFAULT_PRESET = "tiny"


def parse_config(cls: type[T], argv: Sequence[str], *, presets: Path | None = None, flags: bool = False) -> T:
    """Builds `cls` from command-line words. Raises ConfigError, which names the key, similar keys or the type.

    presets: folder of `NAME.yaml` files. flags: help and errors write keys as `--key`. `-h`/`--help` prints the
    fields and exits.
    """
    words = _Words(cls, argv, flags)
    if words.help:
        print(describe(cls, presets, flags=flags))
        raise SystemExit(0)
    values: dict[str, Any] = {}
    available = sorted(path.stem for path in presets.glob("*.yaml")) if presets is not None else []
    preset = words.preset
    if preset is None and DEFAULT_PRESET in available:
        preset = DEFAULT_PRESET
    if preset is not None:
        if preset not in available:
            raise ConfigError(f"--preset {shown(preset)}: no such preset{_nearest(preset, available)}")
        assert presets is not None  # otherwise none is available
        _merge(values, read_yaml(presets / f"{preset}.yaml"))
    file = words.config
    if file is not None:
        _merge(values, _inline(file) if file.lstrip().startswith("{") else read_yaml(Path(file), option="--config "))
    for keys, value in words.settings:
        _merge(values, _nested(keys, value))
    try:
        return from_dict(cls, values, flags=flags)
    except ConfigError as error:
        if file is None:
            raise
        raise ConfigError(f"{error} (with --config {clipped(file, 400)})") from error


def plain_words(cls: type, argv: Sequence[str]) -> list[str]:
    """Returns the words of a command line in one spelling: `--preset NAME`, `--config FILE` and `key=value`."""
    return _Words(cls, argv, flags=False).plain


def load_config(cls: type[T], path: Path) -> T:
    """Builds `cls` from one YAML (or JSON) file."""
    return from_dict(cls, read_yaml(path))


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a configuration to a plain dict for YAML or JSON, from which `from_dict` builds an equal one."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def from_dict(cls: type[T], values: Mapping[str, Any], *, prefix: str = "", flags: bool = False) -> T:
    """Builds the dataclass `cls` from nested mappings, and checks their keys and types."""

    def spelt(key: str) -> str:
        return f"--{clipped(key).replace('_', '-')}" if flags else clipped(key)

    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'config'}: expected keys and values, got {shown(values)}")
    kind: Any = cls
    hints = type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{spelt(f'{prefix}{key}')}: unknown key{_nearest(str(key), list(fields))}")
        name = spelt(f"{prefix}{key}")
        arguments[key] = coerce(value, hints[key], name, _build, path=about(fields[key]).path)
    for name, field in fields.items():
        if is_required(field) and name not in arguments:
            key = f"{prefix}{name}"
            words = given(field, hints[name], clipped(key), flags=flags)
            raise ConfigError(f"{spelt(key)}: a value is required, give {words}")
    config = cls(**arguments)
    for key, value in arguments.items():
        check_finite(value, spelt(f"{prefix}{key}"))
    check_bounds(config, f"--{prefix}" if flags else prefix)
    return config


class _Words:
    """Command-line words: `--preset`, `--config`, and settings as (parts of the key, value of the field's type)."""

    def __init__(self, cls: type, argv: Sequence[str], flags: bool) -> None:
        self._cls, self._flags = cls, flags
        self.preset: str | None = None
        self.config: str | None = None
        self.help = False
        self.settings: list[tuple[list[str], Any]] = []
        self.plain: list[str] = []
        self._positional = [field.name for field in dataclasses.fields(cls) if about(field).positional]
        self._rest = list(argv)
        while self._rest and not self.help:
            self._take(self._rest.pop(0))

    def _take(self, word: str) -> None:
        option, equals, value = word.partition("=")
        if option in ("-h", "--help"):
            self.help = True
        elif option in ("--preset", "--config"):
            if not equals:
                value = self._following(option)
            setattr(self, option[2:], value)
            self.plain += [option, value]
        elif word.startswith("--"):
            self._take_flag(option, value if equals else None)
        elif self._positional and not (equals and option.split(".")[0] in self._names()):
            self._add(self._positional.pop(0), word, word)
        elif equals and not word.startswith("-"):
            self._add(option, value, option)
        else:
            expected = "--key VALUE" if self._flags else "--preset NAME, --config FILE or key=value"
            raise ConfigError(f"{shown(word)}: expected {expected}")

    def _take_flag(self, option: str, value: str | None) -> None:
        """Takes `--key=value`, `--key value` (as many values as a tuple has), `--flag` or `--no-flag`."""
        key = option[2:].replace("-", "_")
        if value is None and key.startswith("no_") and key not in self._names():
            positive = key.removeprefix("no_")
            if positive in self._names() and _field(self._cls, positive.split("."), option)[0] is bool:
                self._add(positive, "false", option)
                return
        hint, _ = _field(self._cls, key.split("."), clipped(option))
        if value is None:
            parts = typing.get_args(next((o for o in options(hint) if typing.get_origin(o) is tuple), None))
            if hint is bool:
                value = "true"
            elif parts and Ellipsis not in parts and not (self._rest and self._rest[0].startswith("[")):
                value = f"[{','.join(self._following(option) for _ in parts)}]"
            else:
                value = self._following(option)
        self._add(key, value, option)

    def _following(self, option: str) -> str:
        if not self._rest or self._rest[0].startswith("--"):
            raise ConfigError(f"{clipped(option)}: a value must follow")
        return self._rest.pop(0)

    def _add(self, key: str, text: str, name: str) -> None:
        keys, name = key.split("."), clipped(name)
        hint, path = _field(self._cls, keys, name)
        self.plain.append(f"{key}={text}")
        self.settings.append((keys, from_text(text, hint, name, _build, path=path)))

    def _names(self) -> set[str]:
        return {field.name for field in dataclasses.fields(self._cls)}


def _field(cls: type, keys: list[str], name: str) -> tuple[Any, bool]:
    """Returns the type of the field at a dotted key, and whether it is a path. Raises ConfigError for unknown keys."""
    hint: Any = cls
    path = False
    for number, key in enumerate(keys):
        below: list[Any] = [option for option in options(hint) if dataclasses.is_dataclass(option)]
        if below:
            fields = {field.name: field for field in dataclasses.fields(below[0]) if field.init}
            if key not in fields:
                raise ConfigError(f"{name}: unknown key{_nearest(key, list(fields))}")
            hint, path = type_hints(below[0])[key], about(fields[key]).path
            continue
        mapping = [option for option in options(hint) if (typing.get_origin(option) or option) is dict]
        if not mapping or number == 0:
            raise ConfigError(f"{name}: unknown key, {clipped('.'.join(keys[:number]))} has no keys below it")
        if number + 1 < len(keys):
            raise ConfigError(f"{name}: unknown key, expected one name below {clipped('.'.join(keys[:number]))}")
        hint, path = (typing.get_args(mapping[0]) or (str, Any))[1], False
    return hint, path


def _build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    flags = prefix.startswith("--")
    return from_dict(cls, values, prefix=prefix.removeprefix("--"), flags=flags)


def _inline(text: str) -> dict[str, Any]:
    found = parse_yaml(text, "--config")
    if not isinstance(found, dict):
        raise ConfigError(f"--config: expected a file or {{keys: values}}, got {shown(text)}")
    return found


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(into: dict[str, Any], new: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in new.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value, f"{name}.")
        elif isinstance(value, Mapping) and into.get(key) not in (None, ""):
            given = shown(into[key])
            raise ConfigError(f"{name}: both {name}={given} and keys below {name} are given; write only such keys")
        else:
            into[key] = _copied(value)


def _copied(value: Any) -> Any:
    """Returns a deep copy of a mapping, because later words are merged into it."""
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _nearest(key: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(key[:LONGEST_KEY], names, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else f"; known: {', '.join(names)}"
