"""The five-point map: eyes, nose tip and mouth corners drawn as coloured discs, with sticks to the nose.

The drawing convention is InstantID's (Wang et al. 2024, arXiv:2401.07519), which Face-MakeUp v1 shares: sticks at 60 %
of their point's colour, discs of ten pixels at full colour over them, black elsewhere.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from makeup_plugin.references import References

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
_NOSE = 2
_STICK = 4  # half of a stick's width, px
_DISC = 10  # radius, px


def draw_five_points(points: NDArray[np.floating], height: int, width: int) -> NDArray[np.uint8]:
    """Map (height, width, 3) RGB of points (5, 2) px in the order of `faceclip.faces`."""
    canvas = np.zeros((height, width, 3), np.uint8)
    for index, (colour, point) in enumerate(zip(COLOURS, points, strict=True)):
        if index == _NOSE:
            continue
        middle = (point + points[_NOSE]) / 2
        step = point - points[_NOSE]
        length, angle = math.hypot(step[0], step[1]), math.degrees(math.atan2(step[1], step[0]))
        stick = cv2.ellipse2Poly((int(middle[0]), int(middle[1])), (int(length / 2), _STICK), int(angle), 0, 360, 1)
        cv2.fillConvexPoly(canvas, stick, colour)
    canvas = (canvas * 0.6).astype(np.uint8)
    for colour, point in zip(COLOURS, points, strict=True):
        cv2.circle(canvas, (int(point[0]), int(point[1])), _DISC, colour, -1)
    return canvas


def placed_points(points: NDArray[np.floating], picture: tuple[int, int], height: int, width: int) -> NDArray:
    """Points (5, 2) px of a picture (height, width) where they lie when the picture is shrunk or enlarged to fit
    height × width, in the middle and without distortion."""
    scale = min(height / picture[0], width / picture[1])
    margin = np.array([width - scale * picture[1], height - scale * picture[0]]) / 2
    return np.asarray(points, np.float64) * scale + margin


def five_point_maps(references: References, others: References | None, *, height: int, width: int) -> Tensor:
    """Maps (N,3,height,width) in [0,1] of the faces of `others` where given, else of the references; black where there
    is no face."""
    sources = references if others is None else others
    maps = torch.zeros(len(references), 3, height, width)
    for row in range(len(maps)):
        if (found := sources.points(row)) is not None:
            points = placed_points(*found, height, width)
            maps[row] = torch.from_numpy(draw_five_points(points, height, width)).permute(2, 0, 1) / 255
    return maps
