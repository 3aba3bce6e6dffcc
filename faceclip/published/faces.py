"""How the release's demo prepares a reference face, as a preset: aligned 448 × 448 px, RGB in [0, 1].

The release ships aligned pictures only and not the step that made them; `norm_crop` of insightface at 448 px is what
they look like (ArcFace's five points × 4), and what `faceclip.faces` cuts. The encoder itself resizes to 112 px.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from faceclip.errors import UnreadableImageError
from faceclip.faces.align import CROP_SIZE
from faceclip.faces.detect import prepare_face
from faceclip.faces.images import ImageSource, describe_source, load_image
from faceclip.faces.looks import FaceDetector


def published_faces(
    pictures: Sequence[ImageSource], *, aligned: bool = False, detector: FaceDetector | None = None
) -> Tensor:
    """Turns pictures into faces (B, 3, 448, 448), float32 RGB in [0, 1], for `FaceCLIP.encode`; no other normalization.

    Args:
        pictures: B paths, PIL images or arrays; whatever their mode, they become RGB.
        aligned: the pictures are aligned crops of 448 × 448 px already, as the demo's own are. Otherwise the largest
            face is found and aligned.
        detector: of faces (None: the offline default).

    Raises:
        UnreadableImageError: no list, unreadable picture, or an aligned one of another size. NoFaceError: no face.
    """
    single = isinstance(pictures, str | bytes) or (isinstance(pictures, np.ndarray) and pictures.ndim < 4)
    if single or not isinstance(pictures, Iterable):
        raise UnreadableImageError(f"pictures must be a list, got one {describe_source(pictures)}: put it in brackets")
    crops = []
    for number, picture in enumerate(pictures):
        name = f"pictures[{number}] ({describe_source(picture)})"
        if not aligned:
            crops.append(prepare_face(picture, detector=detector, name=name).crop)
            continue
        crop = load_image(picture, name=name)
        if crop.shape[:2] != (CROP_SIZE, CROP_SIZE):
            raise UnreadableImageError(
                f"{name} is {crop.shape[1]} × {crop.shape[0]} px, an aligned face of the release is {CROP_SIZE} × "
                f"{CROP_SIZE}: pass aligned=False to have it aligned"
            )
        crops.append(crop)
    if not crops:
        raise UnreadableImageError("pictures is empty: give at least one face")
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
