"""Measures of faces: their number, size, sharpness and hash, the likelihood of drawn faces, and the identity."""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch

from faceclip.data.curate.drawn import likelihood_of_drawn_face
from faceclip.data.curate.measures import Figures, Measure, Picture
from faceclip.data.curate.pixels import perceptual_hash, sharpness_of
from faceclip.faces.align import align_face, crop_side, encoder_crop

SURE = 0.9  # detections with a lower score do not count as faces
CROP = 112  # px, side of the aligned crop in which sharpness and hash are measured
REACH = 1.25  # side of that crop divided by the side of the aligned face
CARTOON_SIDE = 256  # px, longer side at which drawn faces are searched; at 160 px one is found in every tenth photo


def faces(picture: Picture) -> Figures:
    """Measures the largest face and counts the others.

    faces: number of detections with a score of at least `SURE`. face_side: side in pixels of the largest face's aligned
    crop. face_share: its area divided by that of the picture, at most 1. face_score: its score, 0 to 1. second_face:
    area of the second largest face divided by that of the largest. face_sharpness and face_hash: of the aligned crop,
    so that cropping the picture does not change them. landmarks: its five points x, y, … in pixels, flat (10,).
    """
    found = [face for face in picture.faces if face.score >= SURE]
    if not found:
        return {"faces": 0, "second_face": 0.0} | dict.fromkeys(
            ("face_side", "face_share", "face_score", "face_sharpness", "face_hash", "landmarks")
        )
    first = found[0]
    crop = cv2.cvtColor(align_face(picture.pixels, first.landmarks, CROP, view=REACH), cv2.COLOR_RGB2GRAY)
    height, width = picture.grey.shape
    return {
        "faces": len(found),
        "face_side": float(crop_side(first.landmarks.astype(np.float64))),
        "face_share": min(first.area / (height * width), 1.0),
        "face_score": first.score,
        "second_face": found[1].area / max(first.area, 1e-9) if len(found) > 1 else 0.0,
        "face_sharpness": sharpness_of(crop),
        "face_hash": perceptual_hash(crop),
        "landmarks": first.landmarks.reshape(-1).tolist(),
    }


def cartoon(picture: Picture) -> Figures:
    """Measures how much the picture looks like a drawing.

    cartoon: likelihood (0 to 1) of the likeliest drawn face by animeface's cascade, 0 if it finds none. flat_share:
    share of pixels (in the middle 60 % of each side) that differ by at most one level from their neighbours; drawings
    have many of them and photographs few.
    """
    height, width = picture.grey.shape
    scale = min(1.0, CARTOON_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA)
    kernel = np.ones((3, 3), np.uint8)
    inside = picture.grey[height // 5 : height - height // 5, width // 5 : width - width // 5]
    spread = cv2.subtract(cv2.dilate(inside, kernel), cv2.erode(inside, kernel))
    return {
        "cartoon": likelihood_of_drawn_face(small),
        "flat_share": float((spread <= 1).mean()) if inside.size else 0.0,
    }


def identity(picture: Picture) -> Figures:
    """Embeds the largest face: embedding (128,) of dlib's recognizer, of length 1, or None if no face is found."""
    found = [face for face in picture.faces if face.score >= SURE]
    if not found:
        return {"embedding": None}
    encoder = _recognizer()
    crop = encoder_crop(picture.pixels, found[0].landmarks, int(encoder.config.image_size))
    with torch.inference_mode():
        embedding = encoder(torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255).identity[0].double()
    return {"embedding": (embedding / embedding.norm()).tolist()}


@lru_cache(maxsize=1)
def _recognizer() -> Any:
    from faceclip.towers.pretrained import load_tower

    # In this layout its convolutions take two thirds of the time; embeddings differ by 1e-7.
    return load_tower("dlib", "face").to(memory_format=torch.channels_last)


_NUMBER = pa.float32()
FACES = Measure(
    name="faces",
    version=2,
    compute=faces,
    columns={"faces": pa.int32()}
    | dict.fromkeys(("face_side", "face_share", "face_score", "second_face", "face_sharpness"), _NUMBER)
    | {"face_hash": pa.int64(), "landmarks": pa.list_(_NUMBER)},
)
CARTOON = Measure(name="cartoon", version=1, compute=cartoon, columns=dict.fromkeys(("cartoon", "flat_share"), _NUMBER))
IDENTITY = Measure(name="identity", version=3, compute=identity, columns={"embedding": pa.list_(_NUMBER)})
