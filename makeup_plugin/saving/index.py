"""model_index.json of a saved pipeline: which class each component has, checked before any of it is built."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import diffusers
from diffusers import ModelMixin, MultiControlNetModel, SchedulerMixin

from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.loading import check_folder
from faceclip.storage.regular import read_settings
from makeup_plugin.calls.defaults import read_defaults
from makeup_plugin.saving.schedulers import read_scheduler_settings
from makeup_plugin.saving.several_controlnets import check_several

INDEX_FILE = "model_index.json"
_REMEDY = "save or fetch the pipeline again"


def check_pipeline(
    directory: Path, names: Iterable[str], optional: Iterable[str], *, given: Container[str], variant: str | None
) -> list[str]:
    """Checks the index and, by their headers, the weights of all components that will be loaded; returns the names of
    those with weights.

    Args:
        names, optional: components of the pipeline, and those of them that may be absent.
        given: components that the caller brings, which are not looked at.

    Raises:
        CheckpointError: a file is missing or damaged, or a component does not have the tensors of its class; the
            message names file and field or tensor.
    """
    path = directory / INDEX_FILE
    index = read_settings(path)
    if not isinstance(index.get("_class_name"), str):
        raise CheckpointError(f"{path}: _class_name is {index.get('_class_name')!r}, not a name; {_REMEDY}")
    try:
        read_defaults(index.get("default_call"))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; {_REMEDY}") from error
    weighty = []
    for name in names:
        if name in given:
            continue
        kind = _class_of(index.get(name), f"{path}: {name}")
        if kind is None:
            if name not in optional or (name == "joint_encoder" and not _has_text(index, given)):
                raise CheckpointError(f"{path}: {name} is absent, and the pipeline needs it; {_REMEDY}")
        elif issubclass(kind, SchedulerMixin):
            read_scheduler_settings(directory / name / "scheduler_config.json")
        else:
            if issubclass(kind, MultiControlNetModel):
                check_several(directory, variant=variant)
            else:
                check_folder(directory / name, kind, variant=variant)
            weighty.append(name)
    return weighty


def _has_text(index: Mapping[str, object], given: Container[str]) -> bool:
    """Whether the base's own text towers stand in the place of a joint encoder."""
    names = ("text_encoder", "text_encoder_2")
    return any(name in given or index.get(name) not in (None, [None, None]) for name in names)


def _class_of(entry: object, field: str) -> type | None:
    """The class that an entry `[module, class]` names; None for `[null, null]` and for no entry."""
    if entry is None or entry == [None, None]:
        return None
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        raise CheckpointError(f"{field} is {entry!r}, not the names of a module and a class; {_REMEDY}")
    module = diffusers if entry[0] == "diffusers" else sys.modules.get(entry[0])
    # Only classes of modules that are there already: importing one that a file names would run its code.
    kind = None if entry[1].startswith("_") else getattr(module, entry[1], None)
    if not isinstance(kind, type) or not issubclass(kind, ModelMixin | SchedulerMixin):
        raise CheckpointError(
            f"{field} is {entry!r}, which names no model or scheduler; import the module of a class of your own"
            f" before loading, or {_REMEDY}"
        )
    return kind
