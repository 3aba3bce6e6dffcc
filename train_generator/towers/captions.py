"""The captions that the base reads, as token ids."""

import numpy as np
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays
from faceclip.towers.text import tokenize

# How often each kind of caption is drawn: short, long, emotion, both.
CAPTION_ODDS = (0.2, 0.35, 0.1, 0.35)


def tokenized_captions(arrays: FaceArrays, kinds: int = len(CAPTION_ODDS)) -> NDArray[np.int32]:
    """Token ids (N, kinds, 77) of the captions of every portrait."""
    texts = [caption.text for row in arrays.captions for caption in row[:kinds]]
    unique, place = np.unique(np.array(texts), return_inverse=True)
    tokens = tokenize(unique.tolist()).numpy().astype(np.int32)
    return tokens[place].reshape(len(arrays), kinds, -1)
