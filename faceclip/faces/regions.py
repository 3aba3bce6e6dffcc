"""Regions of a face as polygons of its dense landmarks: masks of photographs without a parser."""

import cv2
import numpy as np
from numpy.typing import NDArray

# MediaPipe's numbers, around each region. Left and right are those of the image.
_FACE = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152]
_FACE += [148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
_LIPS = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146]
_INNER_MOUTH = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95]
_NOSE = [168, 193, 245, 188, 174, 217, 126, 209, 198, 49, 48, 64, 98, 97, 2, 326, 327, 294, 278, 279, 420, 429, 355]
_NOSE += [437, 399, 412, 465, 417]
POLYGONS: dict[str, tuple[list[int], ...]] = {
    "face": (_FACE,),
    "brows": ([70, 63, 105, 66, 107, 55, 65, 52, 53, 46], [300, 293, 334, 296, 336, 285, 295, 282, 283, 276]),
    "eyes": (
        [33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7],
        [263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249],
    ),
    "nose": (_NOSE,),
    "lips": (_LIPS,),
    "inner_mouth": (_INNER_MOUTH,),
}
REGIONS = ("skin", "brows", "eyes", "nose", "lips", "inner_mouth")
CHIN, FOREHEAD = 152, 10  # the lowest and the highest point of the face
_SHIFT = 4  # polygons are drawn at 1/16 px


def face_axes(points: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating], float]:
    """Returns unit vectors (2,) down the face and across it, and its length px, of dense points (478 or 468, 2 or
    3)."""
    down = points[CHIN, :2] - points[FOREHEAD, :2]
    length = max(float(np.hypot(*down)), 1e-6)
    down = down / length
    return down, np.array([down[1], -down[0]]), length


def region_masks(points: NDArray[np.floating], height: int, width: int) -> dict[str, NDArray[np.bool_]]:
    """Returns masks (height, width) of `REGIONS`, which do not overlap, and of the whole "face", of dense points (478
    or 468, 2 or 3) px.

    Lips are without the mouth between them; skin is what is left of the face. Parts of the face that are turned away
    are drawn where they would be seen through the head.
    """
    drawn = {name: _drawn(points, polygons, height, width) for name, polygons in POLYGONS.items()}
    inside = drawn["face"]
    masks = {"inner_mouth": drawn["inner_mouth"], "lips": drawn["lips"] & ~drawn["inner_mouth"]}
    taken = drawn["inner_mouth"] | drawn["lips"]
    for name in ("eyes", "brows", "nose"):
        masks[name] = drawn[name] & ~taken
        taken = taken | drawn[name]
    masks["skin"] = inside & ~taken
    return {name: masks[name] for name in REGIONS} | {"face": inside | taken}


def _drawn(points: NDArray[np.floating], polygons: tuple[list[int], ...], height: int, width: int) -> NDArray[np.bool_]:
    canvas = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        places = np.clip(points[polygon, :2], -4 * max(height, width), 4 * max(height, width))
        cv2.fillPoly(canvas, [np.round(places * 2**_SHIFT).astype(np.int32)], 1, shift=_SHIFT)
    return canvas.astype(bool)
