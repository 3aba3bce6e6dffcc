"""Attributes as classes, and which of them a caption names."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays
from train_encoder.towers.judge import visible_labels


def attribute_classes(arrays: FaceArrays, names: Sequence[str]) -> NDArray[np.int64]:
    """Classes (N, A) of every portrait; −100 (`makeup_plugin.losses.IGNORED`) where an attribute cannot be seen."""
    labels = visible_labels(arrays, list(names))
    return np.stack([labels[name] for name in names], axis=1) if names else np.empty((len(arrays), 0), np.int64)


def named_attributes(arrays: FaceArrays, names: Sequence[str], kinds: int) -> NDArray[np.bool_]:
    """(N, kinds, A): whether the caption of each kind names the attribute."""
    return np.array(
        [[[name in caption.named for name in names] for caption in row[:kinds]] for row in arrays.captions], dtype=bool
    )
