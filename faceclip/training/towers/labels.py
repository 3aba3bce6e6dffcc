"""Attribute classes of portraits, which networks are trained to read."""

import numpy as np

from faceclip.data.arrays import UNKNOWN, FaceArrays

JUDGED = ("hair_color", "glasses", "hat", "beard", "expression")
"""Attributes by which prompts are scored, and which trainings may use; others are too small or too vague at 64 px."""


def visible_labels(arrays: FaceArrays, attributes: list[str]) -> dict[str, np.ndarray]:
    """Returns the classes (N,) of each attribute; −100 for values that the picture does not show, such as the hair
    color of a bald head."""
    labels = {name: np.array(arrays.attributes[name], dtype=np.int64) for name in attributes}
    for classes in labels.values():
        classes[classes == UNKNOWN] = -100
    if "hair_color" in labels and "hair_length" in arrays.attributes:
        bald = arrays.vocabularies["hair_length"].index("bald")
        labels["hair_color"][np.asarray(arrays.attributes["hair_length"]) == bald] = -100
    return labels
