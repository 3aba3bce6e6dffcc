"""Command lines in docstrings, shown as code: a docstring's first lines may say how to run its module."""

import re
from typing import Any

from griffe import Extension, Object

COMMANDS = re.compile(r"(?:^ *(?:python|accelerate|make) .*\n?)+", re.MULTILINE)


class CommandsAsCode(Extension):
    """Fences the lines of every docstring that are commands; Markdown would read their brackets as links."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by Griffe for every module, class and function that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = COMMANDS.sub(_fenced, obj.docstring.value)


def _fenced(commands: re.Match[str]) -> str:
    lines = "\n".join(line.strip() for line in commands[0].strip("\n").split("\n"))
    return f"```text\n{lines}\n```\n"
