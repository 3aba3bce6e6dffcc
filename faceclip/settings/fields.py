"""Metadata of a configuration's fields: help text, resume policy, and form on the command line.

    steps: int = setting(1000, "optimizer steps", resume="free")

A field without `setting` has no help text and is compared on resume.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from operator import ge, gt, le, lt
from typing import Any, Literal

from faceclip.errors import ConfigError

Resume = Literal["compared", "free"]
LONGEST_KEY = 100  # characters of a key in a message
_KEY = "faceclip.setting"


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """The metadata of a field; see `setting`."""

    help: str = ""
    resume: Resume = "compared"
    path: bool = False
    positional: bool = False
    bounds: tuple[tuple[str, float, Callable[[float, float], bool]], ...] = ()


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    factory: Callable[[], Any] | Any = dataclasses.MISSING,
    resume: Resume = "compared",
    path: bool = False,
    positional: bool = False,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """Declares a dataclass field with its documentation.

    Args:
        default, factory: as `default` and `default_factory` of `dataclasses.field`; without either a value is required.
        help: one line for `--help`.
        resume: "compared" when a run may only resume with the value that it began with; "free" when the value says
            nothing about the weights, or what it names is compared by its hash.
        path: the text names a file or folder, so that a leading `~` stands for the home folder.
        positional: the command line takes the value without a key, in the order of such fields.
        least, above, most, below: limits of a number, or of each number of a tuple, which `check_bounds` checks; least
            and most are allowed values themselves.
    """
    limits = (("at least", least, ge), ("above", above, gt), ("at most", most, le), ("below", below, lt))
    bounds = tuple((words, limit, holds) for words, limit, holds in limits if limit is not None)
    about = About(help=help, resume=resume, path=path, positional=positional, bounds=bounds)
    return dataclasses.field(default=default, default_factory=factory, metadata={_KEY: about})


def about(field: dataclasses.Field) -> About:
    """Returns the metadata that `setting` put on a field."""
    return field.metadata.get(_KEY, About())


def is_required(field: dataclasses.Field) -> bool:
    """Returns whether a value must be given."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def check_bounds(config: Any, section: str = "") -> None:
    """Raises ConfigError, which names the key, if a number of `config` is not finite, beyond the limits of its field or
    of another type, or if a word is none of those of its Literal, also in a tuple.

    section: begins the key, as "loss." or "--". None has no limits where the type allows it. `from_dict` checks what a
    command or file gives; classes that code constructs too call this in `__post_init__`.
    """
    kind: Any = type(config)
    for field in dataclasses.fields(config):
        name, value, bounds = field.name, getattr(config, field.name), about(field).bounds
        key = section + (name.replace("_", "-") if section.startswith("--") else name)
        hint = type_hints(kind)[name]
        several = isinstance(value, tuple | list)
        each = typing.get_args(hint)[0] if several and typing.get_origin(hint) in (tuple, list) else hint
        words = typing.get_args(each) if typing.get_origin(each) is Literal else ()
        optional = value is None and type(None) in options(hint)
        for item in value if several else () if optional else (value,):
            if words and item not in words:
                raise ConfigError(f"{key}: must be one of {', '.join(map(repr, words))}, got {item!r}")
            if bounds or isinstance(item, float):
                _check_number(item, key, hint, field)


def _check_number(number: Any, key: str, hint: Any, field: dataclasses.Field) -> None:
    bounds = about(field).bounds
    try:
        finite = math.isfinite(number)
    except (TypeError, OverflowError):
        raise ConfigError(f"{key}: expected {shown_type(hint)}, got {clipped(repr(number))}") from None
    if not finite:
        raise ConfigError(f"{key}: must be finite, got {number}")
    if not all(holds(number, limit) for _, limit, holds in bounds):
        limits = " and ".join(f"{words} {limit:,}" for words, limit, _ in bounds)
        raise ConfigError(f"{key}: must be {limits}{' or null' * (field.default is None)}, got {number:,}")


def compared_on_resume(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns, by dotted key, the values of fields that a resumed run must not change.

    A nested configuration is compared by its own fields, whatever the policy of the field that holds it.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= compared_on_resume(value, f"{key}.")
        elif about(field).resume == "compared":
            found |= _leaves(value, key)
    return found


@functools.cache
def type_hints(cls: type) -> dict[str, Any]:
    """Returns the types of a configuration's fields by name."""
    return typing.get_type_hints(cls)


def clipped(key: str, longest: int = LONGEST_KEY) -> str:
    """Returns a key, word or place for a message, printable and limited in length."""
    key = key if key.isprintable() else ascii(key)
    return key if len(key) <= longest else f"{key[:longest]}…"


def options(hint: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def shown_type(hint: Any) -> str:
    """Returns a type as users write its values: the words of a Literal, null for None."""
    parameters = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, parameters))
    if len(options(hint)) > 1:
        return " | ".join(map(shown_type, parameters))
    return "null" if hint is type(None) else str(hint) if parameters else getattr(hint, "__name__", str(hint))


def _leaves(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _leaves(item, f"{key}.{name}")
    return found
