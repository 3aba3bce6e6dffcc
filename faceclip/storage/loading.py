"""Loading models of ours from folders: every tensor of the model is there and no other, or a CheckpointError says why.

diffusers only logs what is missing, leaves it on the `meta` device, and reads the folder of any other class.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from faceclip.errors import CheckpointError

_LISTED = 3
# What a damaged file or configuration gives.
_DAMAGE = (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)


def load_strictly(load: Callable[..., Any], kind: type[nn.Module], source: str | Path, **options: Any) -> Any:
    """What `load`, a `from_pretrained` of the class `kind`, makes of `source` and `options`.

    Raises:
        CheckpointError: the folder is missing or damaged, belongs to another class, or its tensors are not exactly
            those of the model that its configuration describes.
    """
    folder = Path(source, options.get("subfolder") or "")
    remedy = f"give a folder that {kind.__name__}.save_pretrained wrote, or make it again"
    try:
        if folder.is_dir():
            _check_class(folder, kind)
        model, info = load(source, **options | {"output_loading_info": True})
    except _DAMAGE as error:
        raise CheckpointError(f"{folder} cannot be loaded as {kind.__name__} ({error}): {remedy}") from error
    problems = [
        f"{len(info[name])} {name.replace('_', ' ')}: {_listed(info[name])}"
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[name]
    ]
    if problems:
        raise CheckpointError(f"{folder} does not fit {kind.__name__}, {'; '.join(problems)}: {remedy}")
    return (model, info) if options.get("output_loading_info") else model


def _check_class(folder: Path, kind: type[nn.Module]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"config.json holds a {type(config).__name__}, no settings")
    name = config.get("_class_name", kind.__name__)
    if name not in [base.__name__ for base in kind.__mro__]:
        raise ValueError(f"config.json is that of {name!r}")


def _listed(names: list[Any]) -> str:
    names = sorted(map(str, names))
    return ", ".join(names[:_LISTED]) + (" …" if len(names) > _LISTED else "")
