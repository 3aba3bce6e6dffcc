"""Random identities and scenes. Each is a pure function of (seed, identity[, image]), so any worker can draw any."""

import numpy as np

from faceclip.data.records import VOCABULARIES
from faceclip.face3d.camera import Camera
from faceclip.face3d.light import ambient_light, directional_light
from faceclip.face3d.model import HeadModel, default_head
from faceclip.people.parameters import EXPRESSION_RECIPES, Identity, Scene

# Probability of each word where it is not uniform.
_ODDS: dict[str, tuple[float, ...]] = {
    "hair_length": (0.10, 0.34, 0.28, 0.28),
    "beard": (0.58, 0.12, 0.12, 0.18),
    "glasses": (0.52, 0.17, 0.17, 0.14),
    "hat": (0.58, 0.14, 0.14, 0.14),
    "makeup": (0.62, 0.19, 0.19),
    "expression": (0.25, 0.22, 0.14, 0.13, 0.13, 0.13),
}
# Skin tones from light to dark (sRGB), interpolated; undertone varies about them.
_SKIN = np.asarray(
    [
        (0.97, 0.83, 0.75),
        (0.93, 0.75, 0.63),
        (0.84, 0.63, 0.49),
        (0.68, 0.47, 0.34),
        (0.48, 0.32, 0.23),
        (0.30, 0.20, 0.15),
    ]
)
_EYES = np.asarray(
    [
        (0.20, 0.12, 0.07),
        (0.38, 0.24, 0.12),
        (0.42, 0.40, 0.18),
        (0.30, 0.45, 0.30),
        (0.28, 0.45, 0.65),
        (0.52, 0.60, 0.66),
    ]
)
_IDENTITY_STREAM, _SCENE_STREAM = 1, 2


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def sample_identity(seed: int, index: int, *, model: HeadModel | None = None) -> Identity:
    """Draws identity `index` of the world `seed`."""
    model = model or default_head()
    rng = _generator(seed, _IDENTITY_STREAM, index)
    shape = np.clip(rng.normal(0, 0.9, model.shape_size), -2.2, 2.2).astype(np.float32)
    depth = rng.uniform(0, len(_SKIN) - 1)
    low = int(min(depth, len(_SKIN) - 2))
    tone = _SKIN[low] + (depth - low) * (_SKIN[low + 1] - _SKIN[low])
    tone = np.clip(tone * (1 + rng.normal(0, 0.035, 3)), 0.08, 0.99)
    lip = np.clip(tone * (0.88, 0.66, 0.66) + (0.05, 0.0, 0.01) + rng.normal(0, 0.03, 3), 0.05, 0.95)
    eye = _EYES[rng.integers(len(_EYES))] * rng.uniform(0.8, 1.2)
    return Identity(
        index=index,
        shape=shape,
        skin_tone=tone.astype(np.float32),
        lip_tone=lip.astype(np.float32),
        eye_color=np.clip(eye, 0, 1).astype(np.float32),
        freckles=float(max(0.0, rng.uniform(-1.0, 1.0))),
        age_lines=float(max(0.0, rng.uniform(-0.6, 1.0))),
        brow_thickness=float(rng.uniform(0.6, 1.6)),
        brow_arch=float(rng.uniform(-1, 1)),
        detail_seed=int(rng.integers(2**31)),
    )


def sample_attributes(rng: np.random.Generator) -> dict[str, str]:
    """Draws independent words for every name of `VOCABULARIES`."""
    return {name: str(words[rng.choice(len(words), p=_ODDS.get(name))]) for name, words in VOCABULARIES.items()}


def sample_light(rng: np.random.Generator) -> np.ndarray:
    """Draws light (9, 3): tinted ambient light and one or two lamps before the head, never too dark to see the face."""
    tint = 1 + rng.normal(0, 0.05, 3)
    light = ambient_light(rng.uniform(0.38, 0.6) * tint)
    angle, height = rng.uniform(-1.2, 1.2), rng.uniform(-0.2, 0.9)
    direction = np.asarray([np.sin(angle), height, np.cos(angle)])
    light += directional_light(direction, rng.uniform(0.35, 0.65) * (1 + rng.normal(0, 0.06, 3)))
    if rng.random() < 0.5:
        angle = rng.uniform(-2.2, 2.2)
        direction = np.asarray([np.sin(angle), rng.uniform(-0.3, 0.8), np.cos(angle)])
        light += directional_light(direction, rng.uniform(0.1, 0.3) * (1 + rng.normal(0, 0.1, 3)))
    return light.astype(np.float32)


def sample_scene(
    seed: int, identity_index: int, image_index: int, *, frontal: bool | None = None, model: HeadModel | None = None
) -> Scene:
    """Draws scene `image_index` of a person; image 0 is frontal, neutral, without glasses and hat (a gallery picture),
    unless `frontal` says otherwise."""
    model = model or default_head()
    frontal = image_index == 0 if frontal is None else frontal
    rng = _generator(seed, _SCENE_STREAM, identity_index, image_index)
    attributes = sample_attributes(rng)
    yaw = float(np.clip(rng.normal(0, 26), -60, 60)) if rng.random() < 0.6 else float(rng.uniform(-60, 60))
    pose = (yaw, float(np.clip(rng.normal(0, 10), -25, 25)), float(np.clip(rng.normal(0, 6), -15, 15)))
    camera = Camera(
        scale=float(rng.uniform(0.94, 1.06)),
        shift_x=float(rng.normal(0, 0.015)),
        shift_y=float(rng.normal(0, 0.012)),
        distance=float(rng.uniform(11, 20)),
    )
    if frontal:
        attributes |= {"expression": "neutral", "glasses": "none", "hat": "none"}
        yaw, pitch, roll = (float(np.clip(rng.normal(0, s), -3, 3)) for s in (2, 2, 1))
        pose = (yaw, pitch, roll)
    recipe = EXPRESSION_RECIPES[attributes["expression"]]
    intensity = rng.uniform(0.8, 1.15)
    expression = np.asarray([intensity * recipe.get(name, 0.0) for name in model.expression_names], np.float32)
    expression += np.where(rng.random(len(expression)) < 0.15, rng.uniform(0, 0.15, len(expression)), 0)
    return Scene(
        pose=pose,
        expression=expression.astype(np.float32),
        light=sample_light(rng),
        camera=camera,
        attributes=attributes,
        gaze=(float(rng.normal(0, 0.12)), float(rng.normal(0, 0.05))),
        detail_seed=int(rng.integers(2**31)),
    )
