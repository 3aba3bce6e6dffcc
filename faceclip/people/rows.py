"""One rendered portrait with all its labels as a row of the data set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faceclip.captions.grammar import sentences
from faceclip.captions.visibility import visible_regions
from faceclip.data.records import VOCABULARIES, Caption, caption_to_dict
from faceclip.data.writing import encode_png
from faceclip.errors import DataError
from faceclip.people.parameters import Identity, Scene
from faceclip.people.render import Portrait

# Keeps the wording's random stream apart from the ones that draw identities and scenes.
_CAPTION_STREAM = 0xCA9


def make_row(identity: Identity, scene: Scene, portrait: Portrait, *, seed: int, image_index: int) -> Mapping[str, Any]:
    """Returns the row for one image; a function of its arguments alone."""
    generator = np.random.default_rng([_CAPTION_STREAM, seed, identity.index, image_index])
    captions = describe(scene.attributes, portrait.regions, generator)
    return {
        "image": encode_png(portrait.image),
        "identity": identity.index,
        "index": image_index,
        "attributes": dict(scene.attributes),
        "expression": _floats(scene.expression),
        "shape": _floats(identity.shape),
        "pose": dict(zip(("yaw", "pitch", "roll"), scene.pose, strict=True)),
        "camera": _floats(scene.camera.to_array()),
        "light": _floats(scene.light),
        "landmarks_5": np.asarray(portrait.landmarks_5, dtype=np.float32).tolist(),
        "landmarks_68": np.asarray(portrait.landmarks_68, dtype=np.float32).tolist(),
        "regions": encode_png(portrait.regions),
        "shading": encode_png(portrait.shading),
        "captions": [caption_to_dict(caption) for caption in captions],
    }


def describe(
    attributes: Mapping[str, str], regions: NDArray[np.uint8], generator: np.random.Generator
) -> list[Caption]:
    """Returns four captions of one portrait: short and long attributes, the emotion alone, and both. The grammar is
    that of photographs, too.

    `attributes` has a value of `VOCABULARIES` for every name; `regions` (S, S) is the label map, and decides
    what is visible. The same generator state gives the same captions. Raises `DataError` for unknown values.
    """
    for name, values in VOCABULARIES.items():
        if attributes.get(name) not in values:
            raise DataError(f"attribute {name}={attributes.get(name)!r}: expected one of {', '.join(values)}")
    return sentences(attributes, visible_regions(regions), generator)


def _floats(values: Any) -> list[float]:
    return np.asarray(values, dtype=np.float32).ravel().tolist()
