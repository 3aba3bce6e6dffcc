"""Configuration: keyword-only dataclasses, YAML presets and files, dotted overrides.

    python -m COMMAND [--preset NAME] [--config FILE.yaml] [key.sub=value …]

Later sources win: defaults of the dataclass, preset, file, overrides. A preset named `tiny` is used when a
command has one and none is named. Every key must be a field; every value must have the field's type.
"""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from faceclip.errors import ConfigError

T = TypeVar("T")
DEFAULT_PRESET = "tiny"


def parse_config(cls: type[T], argv: Sequence[str], *, presets: Path | None = None) -> T:
    """Build `cls` from command-line words. Raises ConfigError naming the key, similar keys or the type.

    `presets` is the folder of `NAME.yaml` files. `-h`/`--help` prints the fields and exits.
    """
    preset, file, overrides = _split(argv)
    if preset == "--help":
        print(describe(cls, presets))
        raise SystemExit(0)
    values: dict[str, Any] = {}
    available = sorted(path.stem for path in presets.glob("*.yaml")) if presets is not None else []
    if preset is None and DEFAULT_PRESET in available:
        preset = DEFAULT_PRESET
    if preset is not None:
        if preset not in available:
            raise ConfigError(f"--preset {preset}: no such preset{_nearest(preset, available)}")
        _merge(values, read_yaml(presets / f"{preset}.yaml"))
    if file is not None:
        _merge(values, read_yaml(Path(file)))
    for override in overrides:
        key, text = override.split("=", 1)
        _merge(values, _nested(key.split("."), _parse_value(text)))
    return from_dict(cls, values)


def load_config(cls: type[T], path: Path) -> T:
    """Build `cls` from one YAML (or JSON) file."""
    return from_dict(cls, read_yaml(path))


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dict of a configuration, ready for YAML or JSON; `from_dict` of it gives an equal configuration."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def from_dict(cls: type[T], values: Mapping[str, Any], *, prefix: str = "") -> T:
    """Build dataclass `cls` from nested mappings; checks keys and types on the way down."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'config'}: expected keys and values, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: unknown key{_nearest(str(key), list(fields))}")
        arguments[key] = _coerce(value, hints[key], f"{prefix}{key}")
    required = [name for name, field in fields.items() if _is_required(field) and name not in arguments]
    if required:
        raise ConfigError(f"{prefix}{required[0]}: a value is required, give {prefix}{required[0]}=VALUE")
    return cls(**arguments)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError for a missing or malformed file."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration file ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(content or {}, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(content).__name__}")
    return content or {}


def describe(cls: type, presets: Path | None = None) -> str:
    """Help text: every dotted key with its type and default, each group under what its class says of it."""
    lines = ["usage: [--preset NAME] [--config FILE.yaml] [key.sub=value …]"]
    if presets is not None:
        lines += ["", "presets: " + ", ".join(sorted(path.stem for path in presets.glob("*.yaml")))]

    def visit(kind: type, prefix: str) -> None:
        said = inspect.getdoc(kind) or ""
        if said.startswith(f"{kind.__name__}("):  # what `dataclass` writes where a class says nothing
            said = ""
        lines.extend(["", *said.splitlines()])
        groups: list[tuple[type, str]] = []
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            # An option of its own is a short form beside a whole configuration.
            options = [option for option in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(option)]
            groups += [(option, f"{prefix}{field.name}.") for option in options]
            if hint in options:
                continue
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            shown = "required" if default is dataclasses.MISSING else f"default {default!r}"
            lines.append(f"  {prefix}{field.name}: {_shown(hint)} ({shown})")
        for group, name in groups:
            visit(group, name)

    visit(cls, "")
    return "\n".join(lines)


def _shown(hint: Any) -> str:
    """A type as one would write a value of it: the words of a Literal, null for None."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, options))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(map(_shown, options))
    return "null" if hint is type(None) else str(hint) if options else hint.__name__


def _split(argv: Sequence[str]) -> tuple[str | None, str | None, list[str]]:
    preset = file = None
    overrides = []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("-h", "--help"):
            return "--help", None, []
        if option in ("--preset", "--config"):
            if not equals and (value := next(words, None)) is None:
                raise ConfigError(f"{option}: a value must follow")
            preset, file = (value, file) if option == "--preset" else (preset, value)
        elif equals and not word.startswith("-"):
            overrides.append(word)
        else:
            raise ConfigError(f"{word}: expected --preset NAME, --config FILE or key=value")
    return preset, file, overrides


def _parse_value(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, Mapping) and into.get(key) not in (None, ""):
            raise ConfigError(f"{key}: both {key}={into[key]} and keys below {key} are given; write only such keys")
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _nearest(key: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else f"; known: {', '.join(names)}"


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """`value` as `hint`, or a ConfigError. Only lossless changes: int to float, text to Path, list to tuple."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, prefix=f"{key}.")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in parameters:
            return None
        for option in (option for option in parameters if option is not type(None)):
            try:
                return _coerce(value, option, key)
            except ConfigError as error:
                failure = error
        raise failure
    if origin is typing.Literal:
        if value in parameters:
            return value
        raise ConfigError(f"{key}: must be one of {', '.join(map(repr, parameters))}, got {value!r}")
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key}: expected a list, got {value!r}")
        if origin is tuple and parameters and parameters[-1] is not Ellipsis:
            if len(value) != len(parameters):
                raise ConfigError(f"{key}: expected {len(parameters)} values, got {len(value)}")
            return tuple(_coerce(v, p, f"{key}[{i}]") for i, (v, p) in enumerate(zip(value, parameters, strict=True)))
        inner = parameters[0] if parameters else Any
        return origin(_coerce(item, inner, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected keys and values, got {value!r}")
        inner = parameters[1] if parameters else Any
        return {name: _coerce(item, inner, f"{key}.{name}") for name, item in value.items()}
    return _coerce_scalar(value, hint, key)


def _coerce_scalar(value: Any, hint: type, key: str) -> Any:
    if hint is float and isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            raise ConfigError(f"{key}: expected a number, got {value!r}") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a folder may well be called 12
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise ConfigError(f"{key}: expected {hint.__name__}, got {value!r}")
