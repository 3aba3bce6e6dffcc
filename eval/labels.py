"""The labels that evaluation needs of a data set split."""

import numpy as np

from eval.retrieval.protocol import Description, Labels
from faceclip.data.arrays import FaceArrays


def labels_of(arrays: FaceArrays) -> Labels:
    """Identity, attributes as words, and captions with the values they name."""
    values = {name: arrays.attribute_values(name) for name in arrays.vocabularies}
    descriptions = [
        [
            Description(
                text=caption.text,
                kind=caption.kind,
                names={name: str(values[name][row]) for name in caption.named},
            )
            for caption in captions
        ]
        for row, captions in enumerate(arrays.captions)
    ]
    return Labels(
        identity=np.asarray(arrays.identity),
        index=np.asarray(arrays.index),
        attributes=values,
        descriptions=descriptions,
    )
