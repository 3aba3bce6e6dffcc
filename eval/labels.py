"""The labels that evaluation needs of a data set split."""

import numpy as np
from numpy.typing import NDArray

from eval.retrieval.protocol import Description, Labels
from faceclip.data.arrays import FaceArrays


def labels_of(arrays: FaceArrays) -> Labels:
    """Identity, attributes as words ("" where they cannot be seen), and captions with the values they name.

    Of photos nobody says which picture of a person is the frontal one: it is the one whose fitted yaw and pitch are
    least.
    """
    values = arrays.seen_values
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
        index=np.asarray(arrays.index) if arrays.vocabularies else _by_turn(arrays),
        attributes=values,
        descriptions=descriptions,
    )


def _by_turn(arrays: FaceArrays) -> NDArray[np.int64]:
    """(N,) place of each portrait among those of its person, the least turned first."""
    turn = np.abs(np.asarray(arrays.pose)[:, :2]).sum(axis=1)
    identity, place = np.asarray(arrays.identity), np.empty(len(arrays), np.int64)
    order = np.lexsort((turn, identity))
    _, first, person = np.unique(identity[order], return_index=True, return_inverse=True)
    place[order] = np.arange(len(arrays)) - first[person]
    return place
