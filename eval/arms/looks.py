"""Compares a picture's light with that of its reference, and checks whether two detectors agree about its face."""

import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.face3d.fitter import FaceFitter
from faceclip.face3d.light import shade

DIRECTIONS = 256  # normals, spread over the visible side of a head
NEAR = 0.05  # of the face's width: largest mean distance of points on which two detectors agree


def light_error(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns how differently two lights, (N, 27) or (N, 9, 3), shade the visible side of a head, (N,).

    The error is the root mean square difference of the shading over `DIRECTIONS` normals and the three colours. Each
    light is first scaled to a mean shading of 1, because skin tone can imitate a difference in brightness. Equal
    lights give 0; a lamp from the left and one from the right differ by about .5.
    """
    normals = facing_normals(DIRECTIONS)

    def shading(light: NDArray[np.floating]) -> NDArray[np.float64]:
        lit = shade(normals, np.asarray(light).reshape(9, 3)).astype(np.float64)
        return lit / max(lit.mean(), 1e-6)

    errors = [np.square(shading(a) - shading(b)).mean() ** 0.5 for a, b in zip(found, wanted, strict=True)]
    return np.array(errors)


def facing_normals(count: int) -> NDArray[np.float64]:
    """Returns unit normals (count, 3), spread evenly over the half sphere towards the viewer by a Fibonacci lattice."""
    step = np.arange(count)
    z = (step + 0.5) / count
    angle = step * np.pi * (3 - 5**0.5)
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


@torch.no_grad()
def fitted_light(
    fitter: FaceFitter, images: NDArray[np.uint8], landmarks: NDArray[np.floating], *, batch: int = 64
) -> NDArray[np.float64]:
    """Fits the light (N, 27) of the faces with landmarks (N, 5, 2) px in square pictures (N, S, S, 3), uint8."""
    parts = []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        fit = fitter.fit(list(np.array(images[part])), np.array(landmarks[part]), passes=1)
        parts.append(fit.light.flatten(1).double().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 27))


def agreement(
    first: NDArray[np.floating], second: NDArray[np.floating], widths: NDArray[np.floating], *, near: float = NEAR
) -> NDArray[np.float64]:
    """Returns 1 for each picture (N,) in which two detectors agree, else 0.

    first, second (N, 5, 2): their points in px. widths (N,): of the faces in px. They agree if the mean distance of the
    five points is at most `near` times the width; NaN points, of faces that were not found, never agree.
    """
    distance = np.linalg.norm(np.asarray(first, np.float64) - second, axis=-1).mean(axis=1)
    return (np.nan_to_num(distance / np.maximum(widths, 1e-6), nan=np.inf) <= near).astype(np.float64)
