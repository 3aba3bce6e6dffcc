"""The scheduler of a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDIMScheduler, SchedulerMixin

from faceclip.errors import CheckpointError
from faceclip.storage.regular import read_settings

MAX_STEPS = 10**6  # a scheduler makes arrays of that length


def read_scheduler_settings(path: Path) -> dict[str, Any]:
    """The settings of a scheduler. Raises CheckpointError, which names the file, as `read_settings` does, and for a
    number of training steps that no model has."""
    return _checked(read_settings(path, infinite=True), path)


def _checked(config: dict[str, Any], path: str | Path) -> dict[str, Any]:
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise CheckpointError(
            f"{path}: num_train_timesteps is {steps!r}, not a whole number from 1 to {MAX_STEPS:,}; save or fetch it"
            " again"
        )
    return config


def load_scheduler(base: str | Path) -> SchedulerMixin:
    """The base's scheduler, an object of the class that its configuration names. Raises CheckpointError without one."""
    if Path(base).is_dir():
        read_scheduler_settings(Path(base, "scheduler", "scheduler_config.json"))
    try:
        found = DDIMScheduler.load_config(base, subfolder="scheduler")
    except OSError as error:
        raise CheckpointError(f"{base} has no scheduler ({error}); give scheduler=") from error
    config = _checked(found, f"{base}, scheduler_config.json")
    name = config.get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise CheckpointError(f"{base}: diffusers has no scheduler {name!r}; give scheduler= of another class")
    chosen: Any = kind
    return chosen.from_config(config)
