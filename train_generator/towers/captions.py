"""Token ids of the captions that the base is trained on."""

import numpy as np
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays
from faceclip.towers.text import tokenize

# Probability of each kind of caption: short, long, emotion, both.
CAPTION_ODDS = (0.2, 0.35, 0.1, 0.35)


def tokenized_captions(arrays: FaceArrays) -> NDArray[np.int32]:
    """Returns the token ids (N, kinds, 77) of the captions of every portrait, one of each kind."""
    kinds = len(CAPTION_ODDS)
    texts = [caption.text for row in arrays.captions for caption in row[:kinds]]
    unique, place = np.unique(np.array(texts), return_inverse=True)
    tokens = tokenize(unique.tolist()).numpy().astype(np.int32)
    return tokens[place].reshape(len(arrays), kinds, -1)
