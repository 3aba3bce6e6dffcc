"""Changes of a fitted face before it is drawn as a shading map: turn the head, open the smile, move the lamp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from faceclip.errors import ConfigError
from faceclip.face3d.frames import FaceFit
from faceclip.face3d.light import ambient_light, directional_light
from faceclip.face3d.model import default_head
from makeup_plugin.arguments import number

ANGLES = ("yaw", "pitch", "roll")
_LARGEST = {"yaw": 90.0, "pitch": 60.0, "roll": 180.0}  # degrees
_STRONGEST = 2.0  # of an expression control, which is 0 to 1 in the training data
_FROM_LAMP = 0.4  # share of the mean brightness that comes from a lamp, the rest comes from everywhere

Pose = Mapping[str, float] | Sequence[float | None]
Expression = Mapping[str, float] | str


@dataclass(frozen=True, kw_only=True)
class FitEdits:
    """What replaces values of a fit.

    pose: yaw, pitch and roll in degrees, None where the fit's stays. expression: values by control, after all controls
    went to zero if `neutral`. light: (9,3) spherical harmonics, or a direction (3,) to a lamp, or None.
    """

    pose: tuple[float | None, float | None, float | None] = (None, None, None)
    expression: Mapping[str, float] | None = None
    neutral: bool = False
    light: NDArray[np.float64] | None = None

    def apply(self, fit: FaceFit) -> FaceFit:
        """The fit of B faces with these values."""
        pose, expression, light = fit.pose.clone(), fit.expression.clone(), fit.light
        for axis, angle in enumerate(self.pose):
            if angle is not None:
                pose[:, axis] = angle
        if self.neutral:
            expression = torch.zeros_like(expression)
        names = default_head().expression_names
        for name, value in (self.expression or {}).items():
            expression[:, names.index(name)] = value
        if self.light is not None:
            light = _lit(fit.light, self.light)
        return replace(fit, pose=pose, expression=expression, light=light)


def read_fit_edits(pose: Pose | None, expression: Expression | None, light: ArrayLike | None) -> FitEdits | None:
    """The arguments `pose`, `expression` and `light` of a call; None where none of them is given.

    Raises ConfigError, which names the argument, for values that cannot be.
    """
    if pose is None and expression is None and light is None:
        return None
    edits = FitEdits()
    if pose is not None:
        edits = replace(edits, pose=_angles(pose))
    if isinstance(expression, str):
        if expression != "neutral":
            raise ConfigError(f'expression={expression!r}: give "neutral", or values such as {{"smile": 0.8}}')
        edits = replace(edits, neutral=True)
    elif expression is not None:
        edits = replace(edits, expression=_controls(expression))
    if light is not None:
        edits = replace(edits, light=_light(light))
    return edits


def _angles(pose: Pose) -> tuple[float | None, float | None, float | None]:
    if isinstance(pose, Mapping):
        unknown = [name for name in pose if name not in ANGLES]
        if unknown:
            raise ConfigError(f"pose: {unknown[0]!r} is no angle, choose among {', '.join(ANGLES)}")
        pose = [pose.get(name) for name in ANGLES]
    if isinstance(pose, str) or not isinstance(pose, Sequence) or len(pose) != 3:
        raise ConfigError(f"pose must be (yaw, pitch, roll) in degrees, or some of them by name, got {pose!r}")
    yaw, pitch, roll = (
        None if angle is None else _within(f"pose: {name}", angle, _LARGEST[name])
        for name, angle in zip(ANGLES, pose, strict=True)
    )
    return yaw, pitch, roll


def _controls(expression: Any) -> dict[str, float]:
    names = default_head().expression_names
    if not isinstance(expression, Mapping):
        raise ConfigError(f'expression must be "neutral" or values by name, got {expression!r}')
    unknown = [name for name in expression if name not in names]
    if unknown:
        raise ConfigError(f"expression: {unknown[0]!r} is unknown, choose among {', '.join(names)}")
    return {name: _within(f"expression: {name}", value, _STRONGEST) for name, value in expression.items()}


def _light(light: ArrayLike) -> NDArray[np.float64]:
    try:
        values = np.asarray(light, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"light must be numbers, (9, 3) or a direction (3,), got {light!r}") from error
    if values.shape not in ((3,), (9, 3)) or not np.isfinite(values).all():
        raise ConfigError(f"light must be finite numbers, (9, 3) or a direction (3,), got shape {values.shape}")
    if values.shape == (3,) and not values.any():
        raise ConfigError("light: the direction (0, 0, 0) points nowhere; give (x right, y up, z to the viewer)")
    return values


def _lit(fitted: Tensor, light: NDArray[np.float64]) -> Tensor:
    """Coefficients (B,9,3): `light` as it is, or a lamp from that direction which keeps mean brightness and tint."""
    if light.shape == (9, 3):
        return torch.as_tensor(light, dtype=fitted.dtype).expand_as(fitted)
    white = np.ones(3)
    lamp, everywhere = directional_light(light, white), ambient_light(white)
    shape = _FROM_LAMP * lamp / lamp[0, 0] + (1 - _FROM_LAMP) * everywhere / everywhere[0, 0]
    return torch.as_tensor(shape, dtype=fitted.dtype) * fitted[:, :1]


def _within(name: str, value: Any, limit: float) -> float:
    if abs(number(name, value)) > limit:
        raise ConfigError(f"{name} must lie between {-limit:g} and {limit:g}, got {value}")
    return float(value)
