"""Draws shading maps of frames: the face is fitted in a square around it, and its map is drawn in the frame."""

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceclip.data.frames import Frame
from faceclip.data.photo_rows import fit_portraits
from faceclip.data.portrait_reader import FoundPortrait
from faceclip.data.writing import encode_map
from faceclip.face3d.fitter import FaceFitter, shading_maps
from faceclip.face3d.frames import FaceFit, move_fit
from faceclip.face3d.mesh_fitter import MeshFitter

FIT_SIZE, FIT_REACH = 384, 1.7  # side of the fitted squares in px, and divided by that of the face crop


def frame_maps(
    fitter: FaceFitter | MeshFitter, portraits: Sequence[FoundPortrait], pool: Executor
) -> list[NDArray[np.uint8] | None]:
    """Returns the map of each portrait's frame as the bytes of a PNG file; None if the head model cannot fit the face.

    portraits: with pictures of `FIT_SIZE` px, `FIT_REACH` around the face. pool: of threads, each of which draws a map.
    """
    if not portraits:
        return []
    fit, usable, _ = fit_portraits(fitter, portraits, FIT_SIZE)

    def draw(row: int) -> NDArray[np.uint8] | None:
        frame = portraits[row].frame
        assert frame is not None
        if not usable[row]:
            return None
        shading = frame_map(fit.rows([row]), portraits[row].square, frame)
        return np.frombuffer(encode_map(shading)["bytes"], np.uint8)

    return list(pool.map(draw, range(len(portraits))))


def frame_map(fit: FaceFit, square: tuple[int, int, int], frame: Frame) -> NDArray[np.uint8]:
    """Returns the map (h, w, 3) of one fit. square: left, top and side of the fitted square in the whole picture,
    px."""
    height, width = frame.picture.shape[:2]
    side = max(height, width)
    moved = move_fit(fit, square_to_frame(square, frame), before=FIT_SIZE, after=side)
    return shading_maps(moved, side)[0, :height, :width]


def square_to_frame(square: tuple[int, int, int], frame: Frame) -> Tensor:
    """Returns the similarity (1, 2, 3) from px of the fitted square picture to px of the frame."""
    pixel, zoom = square[2] / FIT_SIZE, float(frame.scale.mean())
    corner = np.array(square[:2], np.float64) + 0.5 * pixel - 0.5  # the first pixel in the whole picture
    shift = (corner - frame.window[:2] + 0.5) * frame.scale - 0.5
    return torch.tensor([[[pixel * zoom, 0.0, shift[0]], [0.0, pixel * zoom, shift[1]]]], dtype=torch.float32)
