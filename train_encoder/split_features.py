"""The frozen features of one split of any data, as training and validation of stage 1 read them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faceclip.data.portraits import Portraits
from faceclip.storage.shards import ShardedArray

Rows = NDArray | ShardedArray
IN_MEMORY = 1 << 30  # bytes of a field up to which it is read at once


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """Features of N portraits and of their M captions, which `portraits.caption_start` numbers.

    single: every portrait is a person of its own, so that no other picture of a person can be asked for. faces: key of
    how identities and tokens were made of the pictures.
    """

    portraits: Portraits
    identity: Rows  # (N, E) float32 of the recognizer, unnormalized
    tokens: Rows  # (N, P, W) float16 patch tokens
    image: Rows  # (N, C) float32 CLIP image embedding, unnormalized
    caption: Rows  # (M, C) float32 CLIP text embedding of the plain captions, unnormalized
    single: bool = False
    faces: str = ""


def in_memory(values: ShardedArray) -> Rows:
    """In memory when it is small, else left on disk."""
    return values[:] if np.prod(values.shape) * values.dtype.itemsize <= IN_MEMORY else values
