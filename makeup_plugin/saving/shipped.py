"""Trained pipelines that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path

from faceclip import weights
from faceclip.errors import CheckpointError

SHIPPED = ("tiny",)  # names that `from_pretrained` takes beside directories and hub ids


def shipped_pipeline(name: str) -> Path:
    """Directory of the shipped pipeline `name`, one of `SHIPPED`.

    Raises CheckpointError, which says how to train one, where this installation has none.
    """
    try:
        return weights.path(f"{name}/pipeline", package="makeup_plugin")
    except CheckpointError as error:
        raise CheckpointError(
            f"{name}: this installation ships the frozen towers and no trained pipeline; train one with"
            " `python -m eval.demo --out runs/demo` (about a quarter of an hour on two cores), and name its folder"
            f" runs/demo/generator/export in place of {name}"
        ) from error
