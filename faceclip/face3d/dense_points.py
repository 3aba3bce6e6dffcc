"""Where MediaPipe's 468 surface points lie on the head model: one triangle and three weights for each.

`python -m faceclip.people.dense_points` finds the places on renders, whose geometry is known, and writes the asset.
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from faceclip.errors import CheckpointError
from faceclip.face3d.model import HeadModel, default_head

ASSET = Path(__file__).parent / "assets" / "dense_points.safetensors"
COUNT = 468  # the ten points of the irises, which turn with the gaze, have no place on the head

# MediaPipe's numbers. The outline of the face, which no feature of the picture marks; outer corners of the eyes.
_OUTLINE = """
10 338 297 332 284 251 389 356 454 323 361 288 397 365 379 378 400 377
152 148 176 149 150 136 172 58 132 93 234 127 162 21 54 103 67 109
"""
OUTLINE = np.array([int(number) for number in _OUTLINE.split()])
EYE_CORNERS = (33, 263)  # image-left, image-right


class DensePoints:
    """vertices (468, 3): indices of the triangle's corners; weights (468, 3), which sum to 1; spread (468,): median
    distance of a point from its place on renders, in distances of the outer eye corners; canonical (468, 3): the points
    with the depth that MediaPipe gives them, in the head's rest pose, decimetres."""

    def __init__(self, path: Path | str = ASSET, *, head: HeadModel | None = None) -> None:
        self.head = head or default_head()
        try:
            stored = load_file(path)
            tensors = {name: stored[name] for name in ("vertices", "weights", "spread", "canonical")}
        except (OSError, KeyError, SafetensorError) as error:
            remedy = "reinstall the package or run `python -m faceclip.people.dense_points`"
            raise CheckpointError(f"places of the dense points {path} cannot be read ({error}): {remedy}") from error
        self.vertices = tensors["vertices"].astype(np.int64)
        self.weights = tensors["weights"].astype(np.float32)
        self.spread = tensors["spread"].astype(np.float32)
        self.canonical = tensors["canonical"].astype(np.float32)

    def of(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Values (468, …) at the points, of values (V, …) at the vertices."""
        weights = self.weights.reshape(*self.weights.shape, *(1,) * (values.ndim - 1))
        return (values[self.vertices] * weights).sum(axis=1)


@cache
def default_dense_points() -> DensePoints:
    """The shipped places, read once."""
    return DensePoints()
