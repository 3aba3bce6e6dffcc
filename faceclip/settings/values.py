"""Converts values of settings by the type of their field, so that texts stay texts."""

import dataclasses
import math
import os
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from faceclip.errors import ConfigError
from faceclip.settings.fields import options, shown_type
from faceclip.settings.yaml_text import Plain, parse_yaml

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_NULL = ("null", "Null", "NULL", "~", "")  # of YAML; on a command line nothing is not null
_DIGITS = r"\d+(_\d+)*"
_INTEGER = re.compile(rf"[-+]?{_DIGITS}")
_NUMBER = re.compile(rf"[-+]?({_DIGITS}(\.({_DIGITS})?)?|\.{_DIGITS})([eE][-+]?\d+)?")
_SPECIAL = re.compile(r"[-+]?\.?(inf|nan)", re.IGNORECASE)
_LONGEST_NUMBER = 64  # characters
_LONGEST_SHOWN = 80
_LARGEST = 2**63 - 1
Nested = Callable[[type, Mapping[str, Any], str], Any]


class _Unfit(Exception):
    """Raised if a value has none of the types of a union."""


def shown(value: Any) -> str:
    """Returns a value for an error message, limited in length."""
    text = str(value) if isinstance(value, Plain) and str(value).isprintable() and value else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}… ({len(text):,} characters)"


def from_text(text: str, hint: Any, key: str, nested: Nested, *, path: bool = False) -> Any:
    """Converts a word of a command line to the type of its field.

    Text stays as it is typed; a pair of quotes alone is the empty text. `null` is None if the type allows it. Lists and
    mappings are written as in YAML; if text is allowed too, only texts in their brackets are read as such.

    Raises ConfigError that begins with `key`.
    """
    members = options(hint)
    path = path or Path in members
    if text in ("''", '""'):
        return coerce("", hint, key, nested, path=path)
    if type(None) in members and text and text in _NULL and not (path and text == "~"):
        return None
    words = [member for member in members if member in (str, Path)]
    structures = [member for member in members if _is_structure(member)]
    bracketed = any(text[:1] + text[-1:] == _brackets(structure) for structure in structures)
    if bracketed or hint is Any or (structures and not words):
        return coerce(parse_yaml(text, key), hint, key, nested, path=path)
    if words and all(member in (str, Path, type(None)) or member in structures for member in members):
        return _text(text, words[0], key, path)
    if not text:
        raise ConfigError(f"{key}: expected {shown_type(hint)}, got nothing")
    return coerce(Plain(text), hint, key, nested, path=path)


def coerce(value: Any, hint: Any, key: str, nested: Nested, *, path: bool = False) -> Any:
    """Converts `value` to the type `hint`. `nested` builds a dataclass from a mapping and the prefix of its keys.

    Only lossless conversions are made: an unquoted YAML scalar by the type, int to float, number to text, text to Path,
    list to tuple. Raises ConfigError that begins with `key`.
    """
    try:
        return _coerced(value, hint, key, nested, path or Path in options(hint))
    except _Unfit:
        raise ConfigError(f"{key}: expected {shown_type(hint)}, got {_what(value)}") from None


def check_finite(value: Any, key: str) -> None:
    """Raises ConfigError for NaN or infinity, also in lists and mappings."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: expected a finite number, got {value}")
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            check_finite(item, f"{key}[{number}]")
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_finite(item, f"{key}.{name}")


def plain_value(text: Plain) -> Any:
    """Returns the value of an unquoted scalar of an untyped field: null, bool, int, float or text."""
    if text in _NULL:
        return None
    for read in (_boolean, _integer, _number):
        try:
            return read(text)
        except _Unfit:
            continue
    return str(text)


def _coerced(value: Any, hint: Any, key: str, nested: Nested, path: bool) -> Any:
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _untyped(value)
    if len(members := options(hint)) > 1:
        return _one_of(value, members, key, nested, path)
    if hint is type(None):
        if value is None or (isinstance(value, Plain) and value in _NULL):
            return None
        raise _Unfit
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return nested(hint, value, f"{key}.")
        raise ConfigError(f"{key}: expected keys and values, got {_what(value)}")
    if origin is typing.Literal:
        for choice in parameters:
            if (value == choice and type(value) is type(choice)) or (isinstance(value, Plain) and value == str(choice)):
                return choice
        raise ConfigError(f"{key}: must be one of {', '.join(map(repr, parameters))}, got {_what(value)}")
    if origin in (list, tuple) or hint in (list, tuple):
        return _sequence(value, origin or hint, parameters, key, nested)
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected keys and values, got {_what(value)}")
        inner = parameters[1] if parameters else Any
        return {str(name): coerce(item, inner, f"{key}.{name}", nested) for name, item in value.items()}
    return _scalar(value, hint, key, path)


def _one_of(value: Any, members: tuple[Any, ...], key: str, nested: Nested, path: bool) -> Any:
    empty = value is None or (isinstance(value, Plain) and value in _NULL)
    if empty and type(None) in members and not (path and value == "~"):
        return None
    failure: ConfigError | None = None
    for member in members:
        try:
            return _coerced(value, member, key, nested, path)
        except _Unfit:
            continue
        except ConfigError as error:
            # What is wrong within a mapping says more than that none of the types fits.
            if isinstance(value, Mapping | list | tuple) and _is_structure(member):
                failure = error
    if failure is not None:
        raise failure
    raise _Unfit


def _sequence(value: Any, kind: type, parameters: tuple[Any, ...], key: str, nested: Nested) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key}: expected a list, got {_what(value)}")
    if kind is tuple and parameters and parameters[-1] is not Ellipsis:
        if len(value) != len(parameters):
            raise ConfigError(f"{key}: expected {len(parameters)} values, got {len(value)}")
        pairs = zip(value, parameters, strict=True)
        return tuple(coerce(item, part, f"{key}[{i}]", nested) for i, (item, part) in enumerate(pairs))
    inner = parameters[0] if parameters else Any
    return kind(coerce(item, inner, f"{key}[{i}]", nested) for i, item in enumerate(value))


def _scalar(value: Any, hint: Any, key: str, path: bool) -> Any:
    if hint in (str, Path):
        if isinstance(value, Plain) and value in _NULL and not (path and value == "~"):
            raise ConfigError(
                f"{key}: expected text, got {value or 'nothing'}: put it in quotes if it is meant as text"
            )
        if isinstance(value, int | float) and not isinstance(value, bool) and hint is str:
            return str(value)  # a folder may well be called 12
        if isinstance(value, str | Path):
            return _text(str(value), hint, key, path)
        raise _Unfit
    if isinstance(value, Plain):
        reader = {bool: _boolean, int: _integer, float: _number}.get(hint)
        if reader is None:
            raise _Unfit
        return reader(value)
    if hint is float and isinstance(value, str):
        return _number(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        if hint is int and abs(value) > _LARGEST:
            raise ConfigError(f"{key}: expected an integer of at most 64 bits, got {value.bit_length()} bits")
        return value
    raise _Unfit


def _text(text: str, hint: type, key: str, path: bool) -> str | Path:
    try:
        valid = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ConfigError(f"{key}: expected text without null bytes and stray surrogates, got {shown(str(text))}")
    if hint is Path and not text:  # would be the folder where the command runs
        raise ConfigError(f"{key}: expected a path, got nothing")
    text = os.path.expanduser(text) if path or hint is Path else str(text)
    return Path(text) if hint is Path else text


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise _Unfit
    return text.lower() in _TRUE


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER or not text.isascii() or not _INTEGER.fullmatch(text):
        raise _Unfit
    value = int(text.replace("_", ""))
    if abs(value) > _LARGEST:
        raise _Unfit
    return value


def _number(text: str) -> float:
    if len(text) > _LONGEST_NUMBER or not text.isascii():
        raise _Unfit
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    if not _NUMBER.fullmatch(text):
        raise _Unfit
    return float(text.replace("_", ""))


def _untyped(value: Any) -> Any:
    if isinstance(value, Plain):
        return plain_value(value)
    if isinstance(value, Mapping):
        return {str(name): _untyped(item) for name, item in value.items()}
    return [_untyped(item) for item in value] if isinstance(value, list | tuple) else value


def _is_structure(hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    return kind in (list, tuple, dict) or dataclasses.is_dataclass(kind)


def _brackets(structure: Any) -> str:
    return "[]" if (typing.get_origin(structure) or structure) in (list, tuple) else "{}"


def _what(value: Any) -> str:
    """Returns a value for a message; of a huge one only its kind."""
    if isinstance(value, Mapping):
        return f"{len(value)} keys"
    if isinstance(value, list | tuple) and len(value) > 20:
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"an integer of {value.bit_length()} bits"
    return shown(value)
