"""The region map of a photograph, without a face parser: polygons of dense landmarks, the person's mask and the colour
of the skin."""

import cv2
import numpy as np
from numpy.typing import NDArray

from faceclip.captions.colors import to_lab
from faceclip.data.records import REGIONS
from faceclip.faces.person import hair_mask
from faceclip.faces.regions import CHIN, FOREHEAD, face_axes, region_masks

PERSON = 0.5  # share of the person from which a pixel is hers
_NOSE_BASE = 2
_BROW_LEVEL = (105, 334)
# Around the face's L, a and b: what is skin still, and what is so even where hair is more likely.
_SKIN_SPREAD, _BALD_SPREAD = (30.0, 9.0, 9.0), (18.0, 6.0, 6.0)
_HAIR_REACH = 0.95  # how far from the middle of the face hair is looked for, in widths of the face
_SHOULDERS = 0.75  # the same below the mouth, where shoulders are
_NECK = 0.75  # how far below the chin a neck reaches, in lengths of the face


def map_regions(
    image: NDArray[np.uint8], person: NDArray[np.floating], points: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """Returns labels (H, W) of `records.REGIONS` of an RGB picture (H, W, 3), by the share of a person (H, W) in its
    pixels and the face's dense points (478 or 468, 2 or 3) px.

    Skin, brows, eyes, nose and lips (the mouth between them included) are polygons. The rest of the person is hair, or
    ears where it has the colour of the face beside it, or skin above it (a bald head); below the chin it is neck or
    clothes. Glasses, hat and beard are put in by `add_worn`, where something else knows of them.
    """
    height, width = image.shape[:2]
    masks = region_masks(points, height, width)
    labels = np.zeros((height, width), np.uint8)
    hers = _joined(person >= PERSON, masks["face"])
    down, across, length = face_axes(points)
    rows, columns = np.mgrid[:height, :width]
    depth = columns * down[0] + rows * down[1] - points[CHIN, :2] @ down
    beside = np.abs(columns * across[0] + rows * across[1] - points[[CHIN, FOREHEAD], :2].mean(axis=0) @ across)
    skinlike, bald = _skinlike(image, masks["skin"], _SKIN_SPREAD, _BALD_SPREAD)
    labels[hers] = REGIONS.index("clothes")
    wide = float(np.ptp(points[:468, :2] @ across))
    neck = hers & skinlike & (depth > -0.3 * length) & (depth < _NECK * length) & (beside < 0.7 * wide)
    labels[neck] = REGIONS.index("neck")
    hair = hair_mask(person, points) & hers & (beside < _HAIR_REACH * wide)
    hair &= (beside < _SHOULDERS * wide) | (depth < -0.3 * length)
    labels[hair] = REGIONS.index("hair")
    brows = float((points[list(_BROW_LEVEL), :2] @ down).mean() - points[CHIN, :2] @ down)
    level = (depth > brows) & (depth < -0.15 * length)
    labels[hair & bald & ~level] = REGIONS.index("skin")
    labels[hair & skinlike & level] = REGIONS.index("ears")
    for name in ("skin", "brows", "eyes", "nose", "lips"):
        labels[masks[name]] = REGIONS.index(name)
    labels[masks["inner_mouth"]] = REGIONS.index("lips")
    return labels


def top_of_hair(labels: NDArray[np.uint8], points: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Returns the hair (H, W) of a map above the brows, without its rim: no collars and nothing that shines through."""
    down, _, _ = face_axes(points)
    rows, columns = np.mgrid[: labels.shape[0], : labels.shape[1]]
    high = columns * down[0] + rows * down[1] < points[list(_BROW_LEVEL), :2].mean(axis=0) @ down
    hair = ((labels == REGIONS.index("hair")) & high).astype(np.uint8)
    return cv2.erode(hair, np.ones((3, 3), np.uint8)).astype(bool)


def add_worn(labels: NDArray[np.uint8], points: NDArray[np.floating], worn: frozenset[str]) -> NDArray[np.uint8]:
    """Returns the map (H, W) with the places of what is "worn" of "glasses", "beard" and "hat": around the eyes, below
    the nose without the lips, and what would be hair above the forehead."""
    labels, (height, width) = labels.copy(), labels.shape
    masks = region_masks(points, height, width)
    down, _, length = face_axes(points)
    rows, columns = np.mgrid[:height, :width]
    depth = columns * down[0] + rows * down[1]
    if "hat" in worn:
        labels[(labels == REGIONS.index("hair")) & (depth < points[FOREHEAD, :2] @ down)] = REGIONS.index("hat")
    if "beard" in worn:
        low = masks["face"] & (depth > points[_NOSE_BASE, :2] @ down) & ~masks["lips"] & ~masks["inner_mouth"]
        labels[low & ~masks["nose"]] = REGIONS.index("beard")
    if "glasses" in worn:
        side = max(3, int(0.09 * length)) | 1
        around = cv2.dilate(masks["eyes"].astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)
        labels[around & masks["face"] & ~masks["brows"]] = REGIONS.index("glasses")
    return labels


def _joined(person: NDArray[np.bool_], face: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the part of the mask that hangs together with the face: other people stand behind her."""
    _, parts = cv2.connectedComponents((person | face).astype(np.uint8))
    own = parts[face]
    return person & (parts == np.bincount(own[own > 0]).argmax()) if (own > 0).any() else person & face


def _skinlike(
    image: NDArray[np.uint8], skin: NDArray[np.bool_], *spreads: tuple[float, float, float]
) -> list[NDArray[np.bool_]]:
    """Returns for each spread the pixels whose L, a and b lie so far around those of the face's skin."""
    if not skin.any():
        return [np.zeros(skin.shape, bool) for _ in spreads]
    lab = to_lab(cv2.GaussianBlur(image, (0, 0), max(image.shape[0] / 200, 0.5)))
    middle = np.median(lab[skin], axis=0)
    off = np.abs(lab - middle)
    lightness = 0.55 * middle[0]  # at most: dark hair beside dark skin
    return [(off < np.array([min(around[0], lightness), *around[1:]])).all(axis=-1) for around in spreads]
