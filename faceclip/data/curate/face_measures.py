"""Measures of faces: how many, how large, how sharp, which picture of them, drawn ones, and who it is."""

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

SURE = 0.9  # score of a detector from which something counts as a face
CROP = 112  # px of the aligned crop in which a face's sharpness and hash are taken
REACH = 1.25  # side of that crop in sides of the aligned face
CARTOON_SIDE = 256  # px of the longer side in which drawn faces are looked for; at 160 every tenth photo has one


def faces(picture: Picture) -> Figures:
    """The largest face and those beside it.

    faces: how many the detector is sure of. face_side: px of the largest one's aligned crop; face_share: its share of
    the picture; face_score. second_face: area of the second largest one in areas of the largest. face_sharpness,
    face_hash: of the aligned crop, so that cutting the picture does not change them. landmarks: five points x, y, … in
    pixels.
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
    """cartoon: likelihood of the likeliest drawn face by animeface's cascade, 0 where it finds none. flat_share: share
    of pixels that do not differ from their neighbours, of which fills and drawings have many and photographs few."""
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
    """embedding (128,): of dlib's recognizer, of length 1; None without a face."""
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

    return load_tower("dlib", "face")


_NUMBER = pa.float32()
FACES = Measure(
    name="faces",
    version=1,
    compute=faces,
    columns={"faces": pa.int32()}
    | dict.fromkeys(("face_side", "face_share", "face_score", "second_face", "face_sharpness"), _NUMBER)
    | {"face_hash": pa.int64(), "landmarks": pa.list_(_NUMBER)},
)
CARTOON = Measure(name="cartoon", version=1, compute=cartoon, columns=dict.fromkeys(("cartoon", "flat_share"), _NUMBER))
IDENTITY = Measure(name="identity", version=1, compute=identity, columns={"embedding": pa.list_(_NUMBER)})
