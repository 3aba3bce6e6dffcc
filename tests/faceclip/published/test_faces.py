"""The release's image preprocessing: aligned 448 × 448, RGB in [0, 1]."""

from pathlib import Path

import insightface
import numpy as np
import pytest
import torch
from PIL import Image

from faceclip.encoder import FaceCLIP
from faceclip.errors import NoFaceError, UnreadableImageError
from faceclip.faces import prepare_face
from faceclip.published.faces import published_faces
from tests.faceclip.published_case import CONFIG

PHOTO = Path(insightface.__file__).parent / "data" / "images" / "Tom_Hanks_54745.png"


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (448, 448, 3), dtype=np.uint8)


def test_aligned_pictures_become_rgb_in_the_unit_range(crop, tmp_path):
    Image.fromarray(crop).save(tmp_path / "face.png")
    grey = Image.fromarray(crop[:, :, 0], "L")
    faces = published_faces([tmp_path / "face.png", crop, Image.fromarray(crop), grey], aligned=True)
    assert faces.shape == (4, 3, 448, 448) and faces.dtype == torch.float32
    expected = torch.from_numpy(crop / np.float32(255)).permute(2, 0, 1)  # torchvision's ToTensor
    assert all(torch.equal(face, expected) for face in faces[:3])
    assert torch.equal(faces[3], expected[:1].expand(3, -1, -1))
    model = FaceCLIP(**CONFIG).eval()
    assert model.encode(["a"] * 4, faces).tokens.shape == (4, 77, 80)


def test_faces_are_found_and_aligned():
    found = published_faces([PHOTO])
    expected = prepare_face(PHOTO).crop
    assert torch.equal(found[0], torch.from_numpy(expected).permute(2, 0, 1).float() / 255)


def test_bad_pictures(crop, tmp_path):
    with pytest.raises(UnreadableImageError, match=r"pictures\[1\].*100 × 120 px"):
        published_faces([crop, crop[:120, :100]], aligned=True)
    with pytest.raises(UnreadableImageError, match=r"pictures\[0\].*no\.png"):
        published_faces([tmp_path / "no.png"])
    with pytest.raises(NoFaceError, match=r"pictures\[0\]"):
        published_faces([np.zeros((64, 64, 3), np.uint8)])
    for single in ("face.png", Path("face.png"), b"bytes", Image.fromarray(crop), crop):
        with pytest.raises(UnreadableImageError, match=r"^pictures .*\blist\b"):
            published_faces(single, aligned=True)
    assert len(published_faces(crop[None], aligned=True)) == 1
    with pytest.raises(UnreadableImageError, match=r"^pictures "):
        published_faces([])
