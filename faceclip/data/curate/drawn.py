"""Finds drawn faces by the cascade of `animeface` (extra `curate`).

The package passes Pillow's internal picture structure to C code that was compiled for Pillow 4. Pillow 12 changed the
structure, and since then the package silently finds nothing. This module therefore builds a structure of the expected
layout, and checks at the first use that the cascade finds a drawn face.
"""

import ctypes
from functools import lru_cache
from types import ModuleType

import cv2
import numpy as np
from numpy.typing import NDArray

from faceclip.errors import CheckpointError, MissingExtraError

_SURE = 0.9  # likelihood of the face of `drawn_face`, which is 1.0


class _Imaging(ctypes.Structure):
    """The first fields of Pillow 4's `ImagingMemoryInstance`. Like Pillow's own object, a ctypes structure is a Python
    object whose header is followed by a pointer to the structure."""

    _fields_ = (
        ("mode", ctypes.c_char * 7),
        *((name, ctypes.c_int) for name in ("type", "depth", "bands", "xsize", "ysize")),
        *((name, ctypes.c_void_p) for name in ("palette", "image8", "image32", "image", "block")),
        ("pixelsize", ctypes.c_int),
        ("linesize", ctypes.c_int),
    )


def likelihood_of_drawn_face(pixels: NDArray[np.uint8]) -> float:
    """Returns the likelihood (0 to 1) of the likeliest drawn face in an RGB picture (H, W, 3), or 0 if none is found.

    Raises MissingExtraError if animeface is not installed, and CheckpointError if it does not work on this system.
    """
    return _detect(_animeface(), pixels)


def _detect(extension: ModuleType, pixels: NDArray[np.uint8]) -> float:
    height, width = pixels.shape[:2]
    padded = np.zeros((height, width, 4), np.uint8)
    padded[..., :3] = pixels
    lines = (ctypes.c_void_p * height)(*range(padded.ctypes.data, padded.ctypes.data + padded.nbytes, 4 * width))
    place = ctypes.addressof(lines)
    picture = _Imaging(
        mode=b"RGB", bands=3, xsize=width, ysize=height, image32=place, image=place, pixelsize=4, linesize=4 * width
    )
    return max((float(face["likelihood"]) for face in extension.detect(picture)), default=0.0)


@lru_cache(maxsize=1)
def _animeface() -> ModuleType:
    try:
        from animeface import _nvxs
    except ImportError as error:
        raise MissingExtraError(
            "measures=cartoon needs the package animeface: pip install 'faceclip-makeup[curate]', or leave it out of "
            "measures="
        ) from error
    try:
        found = _detect(_nvxs, drawn_face(192))
    except NotImplementedError as error:
        raise CheckpointError(f"animeface has no compiled part for this system ({error}): {_REMEDY}") from error
    if found < _SURE:
        raise CheckpointError(f"animeface does not find a drawn face ({found:.2f}): {_REMEDY}")
    return _nvxs


_REMEDY = "install version 2.0.3 on CPython, or leave cartoon out of measures="


def drawn_face(size: int) -> NDArray[np.uint8]:
    """Draws a comic face, RGB (size, size, 3), that a detector of drawn faces must find."""
    picture = np.full((256, 256, 3), (200, 225, 245), np.uint8)
    hair, skin, line = (160, 130, 110), (250, 224, 205), (90, 60, 50)
    cv2.ellipse(picture, (128, 120), (92, 100), 0, 0, 360, hair, -1, cv2.LINE_AA)
    cv2.rectangle(picture, (108, 200), (148, 256), (240, 210, 190), -1)
    face = [(62, 110), (66, 160), (95, 200), (128, 218), (161, 200), (190, 160), (194, 110), (170, 70), (86, 70)]
    cv2.fillPoly(picture, [np.array(face, np.int32)], skin, cv2.LINE_AA)
    cv2.polylines(picture, [np.array(face[:7], np.int32)], False, line, 2, cv2.LINE_AA)
    for lock in (
        [(40, 70), (100, 128), (60, 110)],
        [(90, 60), (128, 125), (140, 60)],
        [(130, 60), (165, 125), (180, 70)],
    ):
        cv2.fillPoly(picture, [np.array(lock, np.int32)], hair, cv2.LINE_AA)
    for x in (94, 162):
        cv2.ellipse(picture, (x, 145), (19, 23), 0, 0, 360, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.ellipse(picture, (x, 146), (14, 20), 0, 0, 360, (60, 110, 60), -1, cv2.LINE_AA)
        cv2.ellipse(picture, (x, 146), (8, 13), 0, 0, 360, (20, 15, 25), -1, cv2.LINE_AA)
        cv2.circle(picture, (x - 5, 137), 5, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.ellipse(picture, (x, 142), (20, 23), 0, 195, 345, (40, 25, 25), 4, cv2.LINE_AA)
        cv2.ellipse(picture, (x, 112), (18, 6), 0, 200, 340, line, 2, cv2.LINE_AA)
    cv2.line(picture, (128, 170), (125, 177), (190, 140, 120), 2, cv2.LINE_AA)
    cv2.ellipse(picture, (128, 192), (13, 6), 0, 10, 170, (150, 60, 60), 2, cv2.LINE_AA)
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
