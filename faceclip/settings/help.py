"""Builds the text of `--help`: one line per key, with type, default and the help text of its field."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

from faceclip.settings.fields import about, is_required, options, shown_type, type_hints


def describe(cls: type, presets: Path | None = None, *, flags: bool = False) -> str:
    """Returns the help text: every dotted key with its type and default, each group below its class' docstring.

    `flags`: keys are written as `--key`. The first line shows the module that this process runs and what it requires.
    """
    spec = sys.modules["__main__"].__spec__
    words = ["usage: python", f"-m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]]
    required = [field for field in dataclasses.fields(cls) if is_required(field)]
    words += [given(field, type_hints(cls)[field.name], field.name, flags=flags) for field in required]
    words.append("[--key VALUE …]" if flags else "[--preset NAME] [--config FILE.yaml] [key.sub=value …]")
    lines = [" ".join(words)]
    if presets is not None:
        lines += ["", "presets: " + ", ".join(sorted(path.stem for path in presets.glob("*.yaml")))]
    groups: list[tuple[Any, str]] = [(cls, "")]
    while groups:
        kind, prefix = groups.pop(0)
        said = inspect.getdoc(kind) or ""
        if said.startswith(f"{kind.__name__}("):  # what `dataclass` writes where a class says nothing
            said = ""
        lines += ["", *said.splitlines()]
        hints = type_hints(kind)
        below: list[tuple[Any, str]] = []
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            # An option of its own is a short form beside a whole configuration.
            nested = [option for option in options(hint) if dataclasses.is_dataclass(option)]
            below += [(option, f"{prefix}{field.name}.") for option in nested]
            if hint not in nested:
                lines.append(_line(field, hint, f"{prefix}{field.name}", flags))
        groups = below + groups
    return "\n".join(lines)


def _name(field: dataclasses.Field, key: str, flags: bool) -> str:
    return key.upper() if about(field).positional else f"--{key.replace('_', '-')}" if flags else key


def given(field: dataclasses.Field, hint: Any, key: str, *, flags: bool) -> str:
    """Returns the words that give a key, as `PROMPT`, `--out PATH` or `out=PATH`."""
    value = "" if about(field).positional else f"{' ' if flags else '='}{shown_type(hint).upper()}"
    return f"{_name(field, key, flags)}{value}"


def _line(field: dataclasses.Field, hint: Any, key: str, flags: bool) -> str:
    noted = about(field)
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    shown = (
        "required"
        if default is dataclasses.MISSING
        else f"default {str(default) if isinstance(default, Path) else default!r}"
    )
    line = f"  {_name(field, key, flags)}: {shown_type(hint)} ({shown})"
    if noted.help:
        line += f"  {noted.help}"
    return line + (" [may change on resume]" if noted.resume == "free" else "")
