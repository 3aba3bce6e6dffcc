"""What a portrait is made of: an `Identity` (never changes) and a `Scene` (everything a person can change)."""

from dataclasses import dataclass, field

import numpy as np

from faceclip.face3d.camera import Camera

# Expression controls (names of `HeadModel.expression_names`) of each expression at full intensity.
EXPRESSION_RECIPES: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {"smile": 1.15, "cheek_squint": 0.7, "dimple": 0.4, "eyes_squint": 0.25},
    "laugh": {
        "smile": 1.1,
        "jaw_open": 0.65,
        "upper_lip_up": 0.5,
        "lower_lip_down": 0.35,
        "cheek_squint": 0.9,
        "eyes_squint": 0.55,
    },
    "surprise": {"jaw_open": 0.9, "brow_inner_up": 1.1, "brow_outer_up": 1.1, "eyes_wide": 1.2, "funnel": 0.25},
    "sad": {"frown": 1.2, "brow_inner_up": 1.2, "eyes_squint": 0.3, "blink": 0.2, "pucker": 0.1},
    "angry": {"brow_down": 1.4, "sneer": 0.9, "press": 0.6, "frown": 0.7, "eyes_squint": 0.4, "eyes_wide": 0.2},
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes a person: head geometry, skin and natural eye colour. Colours are sRGB in [0, 1]."""

    index: int
    shape: np.ndarray = field(repr=False)  # (K,) coefficients of the head model
    skin_tone: np.ndarray  # (3,)
    lip_tone: np.ndarray  # (3,) natural lip colour
    eye_color: np.ndarray  # (3,) iris
    freckles: float  # 0 to 1
    age_lines: float  # 0 to 1
    brow_thickness: float  # 0.6 to 1.6
    brow_arch: float  # -1 to 1
    detail_seed: int  # places of freckles, moles and lines


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a person changes between pictures; `attributes` gives each name of `VOCABULARIES` one of its words."""

    pose: tuple[float, float, float]  # yaw, pitch, roll in degrees
    expression: np.ndarray = field(repr=False)  # (E,) controls
    light: np.ndarray = field(repr=False)  # (9, 3) spherical harmonics
    camera: Camera
    attributes: dict[str, str]
    gaze: tuple[float, float]  # of the eyes against the head: right, up; radians
    detail_seed: int  # strands, folds, background
