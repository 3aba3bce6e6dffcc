"""Where in the picture the shading map of a fitted face goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from faceclip.errors import ConfigError
from faceclip.face3d.frames import move_fit

Box = tuple[int, int, int, int]
Placement = Literal["center", "keep"] | Box
MIN_SIDE = 8  # px of a box that can show a face


def check_placement(value: Any, height: int, width: int) -> Placement:
    """The placement as given, a box as whole numbers. Raises ConfigError for anything else."""
    if value in ("center", "keep"):
        return value
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(
            f'reference_placement must be "center", "keep" or a box (left, top, right, bottom) in px, got {value!r}'
        )
    return check_box("reference_placement", value, height, width)


def check_box(name: str, value: Any, height: int, width: int) -> Box:
    """A box (left, top, right, bottom) in px of the picture. Raises ConfigError, which names it, for anything else."""
    numbers = list(value) if isinstance(value, Sequence) else []
    whole = len(numbers) == 4 and all(
        isinstance(number, int | float) and float(number).is_integer() for number in numbers
    )
    if not whole:
        raise ConfigError(f"{name} must be a box of four whole numbers (left, top, right, bottom) in px, got {value!r}")
    left, top, right, bottom = (int(number) for number in numbers)
    inside = left >= 0 and top >= 0 and right <= width and bottom <= height
    if not inside or right - left < MIN_SIDE or bottom - top < MIN_SIDE:
        raise ConfigError(
            f"{name}: the box {(left, top, right, bottom)} must lie in the picture of {width}×{height} px and be at"
            f" least {MIN_SIDE} px wide and high"
        )
    return left, top, right, bottom


def place_shading(
    fitter: Any, fit: Any, photo_size: tuple[int, int], placement: Placement, *, height: int, width: int
) -> Tensor:
    """The shading map (3,height,width) in [0,1] of one face, black outside of it.

    Args:
        fitter: draws maps of fits. fit: one row in the frame of the photo's upper left square, as `FaceFitter.fit`
            gives it without `framed`.
        photo_size: (height, width) of that photo, px.
        placement: "center": the photo, if square, or else a portrait of the face fills the largest square in the
            middle. "keep": the photo, whole and as large as it fits, lies in the middle. A box: as "center", in the
            box.
    """
    square = photo_size[0] == photo_size[1] and height == width  # "center" is the same then
    if placement == "keep" and not square:
        return _kept(fitter, fit, photo_size, height, width)
    left, top, right, bottom = (0, 0, width, height) if isinstance(placement, str) else placement
    side = min(bottom - top, right - left)
    top, left = top + (bottom - top - side) // 2, left + (right - left - side) // 2
    result = torch.zeros(3, height, width)
    result[:, top : top + side, left : left + side] = fitter.shading(_framed(fit, photo_size), side)[0].float().cpu()
    return result


def _framed(fit: Any, photo_size: tuple[int, int]) -> Any:
    """Of a photo that is not square only the face counts: it is framed as the training portraits are."""
    if photo_size[0] == photo_size[1]:
        return fit
    camera = fit.camera.clone()
    camera[:, :3] = torch.tensor([1.0, 0.0, 0.0])
    return replace(fit, camera=camera)


def _kept(fitter: Any, fit: Any, photo_size: tuple[int, int], height: int, width: int) -> Tensor:
    """The face where it is in the photo, which is scaled to fit into the picture and lies in its middle."""
    zoom = min(height / photo_size[0], width / photo_size[1])
    shift = [(out - zoom * size) / 2 for out, size in ((width, photo_size[1]), (height, photo_size[0]))]
    # Pixel centers are at integers: x + ½ is what scales.
    moved = [zoom * 0.5 - 0.5 + offset for offset in shift]
    matrix = torch.tensor([[[zoom, 0.0, moved[0]], [0.0, zoom, moved[1]]]], dtype=torch.float32)
    side = max(height, width)
    fit = move_fit(fit, matrix, before=min(photo_size), after=side)
    return fitter.shading(fit, side)[0].float().cpu()[:, :height, :width]
