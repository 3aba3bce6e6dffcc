"""The frozen features of one split of any data, which training and validation of stage 1 read."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faceclip.data.portraits import Portraits
from faceclip.storage.shards import ShardedArray

Rows = NDArray | ShardedArray
IN_MEMORY = 1 << 30  # bytes; smaller fields are read into memory


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """Features of N portraits and of their M captions, which `portraits.caption_start` numbers.

    single: whether the data have no identities, so that every portrait counts as a person of its own. faces: text that
    identifies how identities and tokens were computed.
    """

    portraits: Portraits
    identity: Rows  # (N, E) float32 of the recognizer, unnormalized
    tokens: Rows  # (N, P, W) float16 patch tokens
    image: Rows  # (N, C) float32 CLIP image embedding, unnormalized
    caption: Rows  # (M, C) float32 CLIP text embedding of the plain captions, unnormalized
    single: bool = False
    faces: str = ""


def in_memory(values: ShardedArray) -> Rows:
    """Reads the values into memory if they are small; otherwise leaves them on disk."""
    return values[:] if np.prod(values.shape) * values.dtype.itemsize <= IN_MEMORY else values
