"""The scheduler of a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDIMScheduler, SchedulerMixin

from faceclip.errors import CheckpointError


def load_scheduler(base: str | Path) -> SchedulerMixin:
    """The base's scheduler, an object of the class that its configuration names."""
    config = DDIMScheduler.load_config(base, subfolder="scheduler")
    name = config.get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise CheckpointError(f"{base}: diffusers has no scheduler {name!r}; give scheduler= of another class")
    chosen: Any = kind
    return chosen.from_config(config)
