"""Two further measurements of a picture: how far its light is from the reference's, and whether two detectors agree."""

import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.face3d.fitter import FaceFitter
from faceclip.face3d.light import shade

DIRECTIONS = 256  # of the side of a head that a viewer sees
NEAR = 0.05  # of the face's width, within which two detectors mean the same points


def light_error(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> NDArray[np.float64]:
    """How differently two lights (N, 27) or (N, 9, 3) shade what faces the viewer, (N,).

    Root mean square difference of the shading over `DIRECTIONS` normals and the three colours, after each light was
    scaled to a mean shading of 1: brightness alone, which skin tone can imitate, is no error. 0 is the same light;
    a lamp from the left against one from the right gives about .5.
    """
    normals = facing_normals(DIRECTIONS)

    def shading(light: NDArray[np.floating]) -> NDArray[np.float64]:
        lit = shade(normals, np.asarray(light).reshape(9, 3)).astype(np.float64)
        return lit / max(lit.mean(), 1e-6)

    errors = [np.square(shading(a) - shading(b)).mean() ** 0.5 for a, b in zip(found, wanted, strict=True)]
    return np.array(errors)


def facing_normals(count: int) -> NDArray[np.float64]:
    """Unit normals (count, 3) spread evenly over the half sphere towards the viewer (a Fibonacci lattice)."""
    step = np.arange(count)
    z = (step + 0.5) / count
    angle = step * np.pi * (3 - 5**0.5)
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


@torch.no_grad()
def fitted_light(
    fitter: FaceFitter, images: NDArray[np.uint8], landmarks: NDArray[np.floating], *, batch: int = 64
) -> NDArray[np.float64]:
    """Light (N, 27) that the fitter sees on faces with five points (N, 5, 2) px in square pictures (N, S, S, 3)."""
    parts = []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        fit = fitter.fit(list(np.array(images[part])), np.array(landmarks[part]), passes=1)
        parts.append(fit.light.flatten(1).double().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 27))


def agreement(
    first: NDArray[np.floating], second: NDArray[np.floating], widths: NDArray[np.floating], *, near: float = NEAR
) -> NDArray[np.float64]:
    """1 for each picture in which two sets of five points (N, 5, 2) px lie on average within `near` of the face's width
    (N,) of each other, else 0; NaN points, of a face that was not found, agree with nothing."""
    distance = np.linalg.norm(np.asarray(first, np.float64) - second, axis=-1).mean(axis=1)
    return (np.nan_to_num(distance / np.maximum(widths, 1e-6), nan=np.inf) <= near).astype(np.float64)
