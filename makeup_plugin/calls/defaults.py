"""The settings of a call that suit a model, which a saved pipeline brings with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from faceclip.errors import ConfigError
from makeup_plugin.arguments import number, whole_number

MAX_STEPS = 100_000  # more than any scheduler was trained with


@dataclass(frozen=True, kw_only=True)
class CallDefaults:
    """Values that a call uses for arguments that the caller leaves out. Those of the class are what FaceCLIP publishes;
    a scale of None is 1 if the channel exists.

    Raises ConfigError, naming the field, for values that no call can have.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    guide_shading: bool = False
    identity_scale: Any = None
    shading_scale: Any = None

    def __post_init__(self) -> None:
        if not 1 <= whole_number("num_inference_steps", self.num_inference_steps) <= MAX_STEPS:
            raise ConfigError(
                f"num_inference_steps must be at least 1 and at most {MAX_STEPS:,}, got {self.num_inference_steps}"
            )
        number("guidance_scale", self.guidance_scale)
        if not isinstance(self.guide_shading, bool):
            raise ConfigError(f"guide_shading must be true or false, got {self.guide_shading!r}")

    def filled(self, **given: Any) -> CallDefaults:
        """With the caller's values where they are not None. Raises ConfigError for impossible ones."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def read_defaults(values: Mapping[str, Any] | None) -> CallDefaults:
    """The defaults of a pipeline's `config.default_call`; None gives the published ones.

    Raises ConfigError, which begins with default_call, for anything but a mapping, for unknown names, and for
    impossible values.
    """
    if values is None:
        return CallDefaults()
    if not isinstance(values, Mapping):
        raise ConfigError(f"default_call must be a mapping of a call's arguments, got {values!r}")
    known = [field.name for field in fields(CallDefaults)]
    if unknown := [name for name in values if name not in known]:
        raise ConfigError(f"default_call: unknown {unknown[0]!r}; known: {', '.join(known)}")
    try:
        for name in ("identity_scale", "shading_scale"):
            if values.get(name) is not None:
                number(name, values[name])
        return CallDefaults(**values)
    except ConfigError as error:
        raise ConfigError(f"default_call: {error}") from error
