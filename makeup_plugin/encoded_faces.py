"""What the frozen encoders know of faces: made once, and given to `encode_conditions` in place of the faces."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from faceclip.towers.face import FaceFeatures


@dataclass(frozen=True, kw_only=True)
class EncodedFaces:
    """The faces of B samples.

    features: of B rows; what rows without a face hold does not matter. image_tokens: (F,T,W) of the F rows with a face;
    None without an image tower. has_face: (B,) bool, at least one of them.
    """

    features: FaceFeatures
    image_tokens: Tensor | None
    has_face: Tensor
