"""Attributes read on a photograph: from blendshapes, pose and light of the 3D fit, and colours of regions.

Every reading has a confidence. For a figure x with a border b and a softness s it is the logistic function of
(x − b) / s, so .5 at the border; for a colour it is the share of its region's pixels with that name. They are not
calibrated; docs/photographs.md has the precision that was measured.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from faceclip.captions.colors import (
    HAIR_NAMES,
    NAMES,
    Reading,
    in_neutral_light,
    is_grey,
    most,
    name_hair_pixels,
    name_pixels,
    to_lab,
)
from faceclip.captions.region_map import top_of_hair
from faceclip.data.records import REGIONS
from faceclip.faces.blendshapes import NAMES as SHAPES

Readings = dict[str, Reading]
_BALD = 18.0  # distance in Lab of hair and skin below which there may be no hair
_EYE_DEGREES = 30.0  # that a blendshape of 1 turns an eye by, about
_INNER_LIPS, _MOUTH_CORNERS = (13, 14), (61, 291)
_FACE_REGIONS = ("skin", "brows", "eyes", "glasses", "nose", "lips", "beard")


def read_attributes(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    *,
    points: NDArray[np.floating],
    blendshapes: NDArray[np.floating],
    pose: NDArray[np.floating],
    light: NDArray[np.floating],
) -> Readings:
    """Reads what an RGB picture (H, W, 3) shows of a face, by name of `records.PHOTO_VOCABULARIES`.

    labels: region map (H, W); points: (478, 2 or 3) px; blendshapes: (52,); pose: (3,) yaw, pitch, roll in degrees;
    light: (9, 3) of the fit. The readings with a low confidence are among them.
    """
    shapes = dict(zip(SHAPES, map(float, blendshapes), strict=True))
    found = read_face(shapes, points) | read_pose(pose) | read_gaze(shapes, pose) | read_light(light)
    return found | read_colors(image, labels, points) | read_size(labels)


def said(readings: Mapping[str, Reading], least: float) -> dict[str, str]:
    """Returns the values that are sure enough to be said."""
    return {name: reading.value for name, reading in readings.items() if reading.confidence >= least}


def read_face(shapes: Mapping[str, float], points: NDArray[np.floating]) -> Readings:
    """Reads expression, mouth, eyes and brows. Sadness and anger are not read: on photographs the blendshapes of frowns
    stay near 0, and lowered brows are as often concentration or sunlight."""
    smile = min(_both(shapes, "mouthSmile"), 1.0)
    jaw, blink = shapes["jawOpen"], min(shapes["eyeBlinkLeft"], shapes["eyeBlinkRight"])
    brows = max(_both(shapes, "browOuterUp"), shapes["browInnerUp"])
    width = float(np.linalg.norm(np.subtract(*points[list(_MOUTH_CORNERS), :2])))
    gap = float(np.linalg.norm(np.subtract(*points[list(_INNER_LIPS), :2]))) / max(width, 1e-6)
    smiles, opens, raised = _above(smile, 0.5, 0.08), _above(jaw, 0.2, 0.03), _above(brows, 0.35, 0.05)
    still = _above(-smile, -0.2, 0.06) * _above(-jaw, -0.12, 0.03) * _above(-brows, -0.25, 0.05)
    expressions = {
        "smile": smiles * (1 - opens),
        "laugh": _above(smile, 0.65, 0.06) * opens,
        "surprise": (1 - smiles) * opens * raised,
        "neutral": still * _above(-_both(shapes, "browDown"), -0.5, 0.06) * _above(-gap, -0.08, 0.015),
    }
    return {
        "expression": _likeliest(expressions),
        "mouth": _likeliest({"open": opens * _above(gap, 0.12, 0.02), "closed": _above(-gap, -0.05, 0.01)}),
        "eyes": _likeliest({"closed": _above(blink, 0.62, 0.04), "open": _above(-blink, -0.35, 0.05)}),
        "brows": _likeliest({"raised": raised, "resting": 1 - raised}),
    }


def read_pose(pose: NDArray[np.floating]) -> Readings:
    """Reads where the head is turned to and tilted, by yaw, pitch and roll in degrees."""
    yaw, pitch, roll = map(float, pose)
    turned = {"left": _above(-yaw, 18, 3), "right": _above(yaw, 18, 3), "frontal": _above(-abs(yaw), -8, 2)}
    raised = {"up": _above(pitch, 15, 3), "down": _above(-pitch, 15, 3), "level": _above(-abs(pitch), -7, 2)}
    tilted = {"left": _above(-roll, 12, 2), "right": _above(roll, 12, 2), "upright": _above(-abs(roll), -6, 2)}
    return {"head": _likeliest(turned), "nod": _likeliest(raised), "tilt": _likeliest(tilted)}


def read_gaze(shapes: Mapping[str, float], pose: NDArray[np.floating]) -> Readings:
    """Reads where the eyes look, by the turn of the head and of the eyes in it; of open eyes alone."""
    right = (shapes["eyeLookOutLeft"] + shapes["eyeLookInRight"]) / 2  # the person's left is the picture's right
    left = (shapes["eyeLookOutRight"] + shapes["eyeLookInLeft"]) / 2
    up = _both(shapes, "eyeLookUp") - _both(shapes, "eyeLookDown")
    across, high = float(pose[0]) + _EYE_DEGREES * (right - left), float(pose[1]) + _EYE_DEGREES * up
    opened = _above(-_both(shapes, "eyeBlink"), -0.4, 0.05)
    looks = {
        "left": _above(-across, 22, 4),
        "right": _above(across, 22, 4),
        "up": _above(high, 16, 3),
        "down": _above(-high, 20, 3),
        "camera": _above(-abs(across), -8, 2) * _above(-abs(high), -10, 2),
    }
    return {"gaze": _likeliest({name: value * opened for name, value in looks.items()})}


def read_light(light: NDArray[np.floating]) -> Readings:
    """Reads where the light comes from, by the first order of the fit's spherical harmonics over their mean."""
    grey = np.asarray(light, np.float64).mean(axis=1)
    across, high = grey[3] / max(grey[0], 1e-3), grey[1] / max(grey[0], 1e-3)
    return {
        "light": _likeliest(
            {
                "left": _above(-across, 0.2, 0.03) * _above(-across, high, 0.05),
                "right": _above(across, 0.2, 0.03) * _above(across, high, 0.05),
                "above": _above(high, 0.25, 0.03) * _above(high, abs(across), 0.05),
                "below": _above(-high, 0.15, 0.03) * _above(-high, abs(across), 0.05),
                "even": _above(-abs(across), -0.08, 0.02) * _above(-abs(high - 0.05), -0.1, 0.02),
            }
        )
    }


def read_colors(image: NDArray[np.uint8], labels: NDArray[np.uint8], points: NDArray[np.floating]) -> Readings:
    """Reads the colours of hair, clothes, background and lips; none of a black and white picture."""
    lab = to_lab(image)
    if is_grey(lab):
        return {}
    found: Readings = {}
    skin = lab[labels == REGIONS.index("skin")]
    hair = lab[top_of_hair(labels, points)]
    if (reading := most(name_hair_pixels(in_neutral_light(hair, skin)), HAIR_NAMES)) and len(skin):
        apart = float(np.linalg.norm(np.median(hair, axis=0) - np.median(skin, axis=0)))
        found["hair_color"] = _weighed(reading, _above(apart, _BALD, 1.0))
    for name, region in (("clothes_color", "clothes"), ("background_color", "background")):
        if reading := most(name_pixels(lab[labels == REGIONS.index(region)]), NAMES):
            found[name] = reading
    if "background_color" in found and found["background_color"].value == "black":
        found["background_color"] = Reading(value="dark", confidence=found["background_color"].confidence)
    lips = lab[labels == REGIONS.index("lips")]
    if len(lips) and len(skin):
        redder = float(np.median(lips[:, 1]) - np.median(skin[:, 1]))
        red = _above(redder, 20, 2) * _above(float(np.median(lips[:, 1])), 30, 3)
        found["lip_color"] = _likeliest({"red": red, "natural": 1 - red})
    return found


def read_size(labels: NDArray[np.uint8]) -> Readings:
    """Reads how large the face is in the picture, by its share of the pixels."""
    share = float(np.isin(labels, [REGIONS.index(name) for name in _FACE_REGIONS]).mean())
    sizes = {"close": _above(share, 0.3, 0.02), "far": _above(-share, -0.06, 0.01)}
    return {"face_size": _likeliest(sizes | {"medium": 1 - max(sizes.values())})}


def _above(value: float, border: float, softness: float) -> float:
    """Returns how surely `value` lies above the border."""
    return float(1 / (1 + np.exp(-np.clip((value - border) / softness, -50, 50))))


def _both(shapes: Mapping[str, float], name: str) -> float:
    return (shapes[f"{name}Left"] + shapes[f"{name}Right"]) / 2


def _likeliest(confidences: Mapping[str, float]) -> Reading:
    value = max(confidences, key=confidences.__getitem__)
    return Reading(value=value, confidence=float(confidences[value]))


def _weighed(reading: Reading, weight: float) -> Reading:
    return Reading(value=reading.value, confidence=reading.confidence * weight)
