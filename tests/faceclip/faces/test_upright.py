"""Pictures that are stored on their side or upside down, without an EXIF orientation that says so."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from faceclip.errors import NoFaceError
from faceclip.faces.align import quarter_turn, stand_up, template, tilt, turn_points
from faceclip.faces.batches import upright_faces
from faceclip.faces.detect import MTCNNDetector, find_faces, prepare_face
from faceclip.faces.images import load_image
from faceclip.faces.looks import Face, detect_with_retries, look_reduced
from faceclip.faces.upright import CLEAR, best_turn, detect_upright


def package_picture(package: str, path: str) -> np.ndarray:
    """A picture of an installed package, which is not imported."""
    return load_image(Path(importlib.util.find_spec(package).origin).parent / path)


@pytest.fixture(scope="module")
def detector() -> MTCNNDetector:
    return MTCNNDetector()


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return package_picture("skimage", "data/astronaut.png")


@pytest.fixture(scope="module")
def points(astronaut, detector) -> np.ndarray:
    (face,) = detect_with_retries(astronaut, detector)
    return face.landmarks


def tilted(image: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The whole picture turned counterclockwise on a larger one, and the map (2, 3) of its points."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    side = int(np.hypot(height, width))
    matrix[:, 2] += [(side - width) / 2, (side - height) / 2]
    return cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), matrix


def test_faces_of_upright_pictures_stay_as_they_were_found(astronaut, detector):
    (before,) = detect_with_retries(astronaut, detector)
    (after,) = detect_upright(astronaut, detector)
    assert np.array_equal(before.landmarks, after.landmarks) and np.array_equal(before.box, after.box)
    assert after.turn == 0
    prepared = prepare_face(astronaut, detector=detector)
    assert prepared.turn == 0 and prepared.image.tobytes() == astronaut.tobytes()


def test_a_clear_face_is_not_looked_at_again(astronaut, detector):
    class Counting:
        looks = 0

        def detect(self, image: np.ndarray) -> list[Face]:
            self.looks += 1
            return detector.detect(image)

    clear, dim = Counting(), Counting()
    (face,) = detect_upright(astronaut, clear)
    assert face.score >= CLEAR and clear.looks == 1
    pale = (astronaut // 4 + 100).astype(np.uint8)
    (face,) = detect_upright(pale, dim)
    assert face.score < CLEAR and dim.looks > 1


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_portrait_is_found_where_it_lies(astronaut, points, detector, quarters):
    stored = np.ascontiguousarray(np.rot90(astronaut, quarters))
    (face,) = find_faces(stored, detector, policy="all")
    assert face.turn == 360 - 90 * quarters
    np.testing.assert_allclose(face.landmarks, turn_points(points, quarters, 512, 512), atol=0.01)
    assert (face.box[2:] > face.box[:2]).all()


def test_a_turned_portrait_gives_the_same_crop(astronaut, detector):
    plain = prepare_face(astronaut, detector=detector)
    turned = prepare_face(np.ascontiguousarray(np.rot90(astronaut, 3)), detector=detector)
    assert turned.turn == 90
    np.testing.assert_array_equal(turned.image, astronaut)
    np.testing.assert_allclose(turned.face.landmarks, plain.face.landmarks, atol=0.01)
    np.testing.assert_allclose(turned.face.box, plain.face.box, atol=0.01)
    assert np.abs(turned.crop.astype(float) - plain.crop).mean() < 0.1


@pytest.mark.parametrize("degrees", [105, 255])
def test_a_portrait_between_two_quarters_is_found(astronaut, points, detector, degrees):
    stored, matrix = tilted(astronaut, degrees)
    face = find_faces(stored, detector)[0]
    expected = points @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(face.landmarks - expected).max() < 8
    assert abs((tilt(face.landmarks) - tilt(points) + degrees + 180) % 360 - 180) < 8


def test_everyone_of_a_group_that_is_upside_down(detector):
    group = package_picture("insightface", "data/images/t1.jpg")
    upright = detect_with_retries(group, detector)
    found = detect_upright(np.ascontiguousarray(np.rot90(group, 2)), detector)
    assert [face.turn for face in found] == [180] * len(upright) == [180] * 6
    expected = sorted(turn_points(face.landmarks, 2, *group.shape[:2]).tolist() for face in upright)
    np.testing.assert_allclose(sorted(face.landmarks.tolist() for face in found), expected, atol=0.01)


class Scripted:
    """Finds an upright face in the middle of the views whose top row has one of the given colours."""

    def __init__(self, scores: dict[int, float]) -> None:
        self.scores = scores

    def detect(self, image: np.ndarray) -> list[Face]:
        score = self.scores.get(int(image[2, image.shape[1] // 2, 0]))
        if score is None:
            return []
        side = image.shape[0]
        box = np.array([0.25, 0.25, 0.75, 0.75], np.float32) * side
        return [Face(box=box, landmarks=template(side // 2) + side / 4, score=score)]


@pytest.fixture
def edges() -> np.ndarray:
    """A picture whose sides have the colours 50 (top), 100 (right), 150 (bottom) and 200 (left)."""
    y, x = np.mgrid[:256, :256]
    colours = np.where(y < x, np.where(y < 255 - x, 50, 100), np.where(y < 255 - x, 200, 150))
    return np.repeat(colours[:, :, None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("scores", "turn"),
    [
        ({50: 0.999999, 100: 1.0}, 0),  # sure enough as it was found
        ({50: 0.95, 100: 0.999}, 1),
        ({50: 0.95, 150: 0.999}, 2),
        ({50: 0.95, 200: 0.999, 100: 0.99}, 3),
        ({50: 0.95, 100: 0.97}, 0),  # hardly surer
        ({}, 0),
        ({200: 0.6}, 3),
    ],
)
def test_another_turn_must_be_surer(edges, scores, turn):
    points = (template(128) + 64).astype(np.float32)
    face = Face(box=np.array([64, 64, 192, 192], np.float32), landmarks=points, score=0.9)
    assert best_turn(edges, face, Scripted(scores)) == turn


def test_a_face_that_no_turn_explains_is_refused(edges):
    """As it lies, the other side is surer; on that side, the first one is."""

    class Contrary(Scripted):
        def detect(self, image: np.ndarray) -> list[Face]:
            self.scores = {50: 0.8, 150: 0.8} if image.shape[0] > 96 else {50: 0.6, 100: 0.99, 150: 0.6, 200: 0.99}
            return super().detect(image)

    with pytest.raises(NoFaceError, match="the wall"):
        find_faces(edges, Contrary({}), name="the wall")


def test_a_reduced_look_that_finds_nothing_leaves_other_turns_to_the_whole_picture(edges):
    """Where the picture as it lies shows a face to further attempts, that face comes before a turned one."""

    class Contrary(Scripted):
        def detect(self, image: np.ndarray) -> list[Face]:
            seen = (50, 100) if image.shape[0] == 96 else (50,) if image.shape[0] > 300 else (100,)
            self.scores = dict.fromkeys(seen, 0.9999)
            return super().detect(image)

    detector = Contrary({})
    assert look_reduced(edges, 128, lambda small, attempts: detect_upright(small, detector, attempts)) == []
    (face,) = detect_upright(edges, detector)
    assert face.turn == 0
    (face,) = detect_upright(edges, Scripted({100: 0.9999}))
    assert face.turn == 90


@pytest.mark.parametrize("turn", range(4))
def test_points_turn_with_their_picture(turn):
    image = np.zeros((5, 7, 3), np.uint8)
    image[1, 4] = 255
    x, y = turn_points(np.array([4, 1]), turn, 5, 7)
    assert np.rot90(image, turn)[y, x, 0] == 255


@pytest.mark.parametrize(
    ("degrees", "quarters"), [(0, 0), (59, 0), (-59, 0), (61, 3), (-61, 1), (90, 3), (-100, 1), (180, 2), (-170, 2)]
)
def test_only_strong_tilts_count_as_turns(degrees, quarters):
    """A head whose picture was turned counterclockwise by some degrees is turned back by the rest of the circle."""
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    landmarks = template(448) @ rotation.T + 500
    assert tilt(landmarks) == pytest.approx(-degrees, abs=1e-3) or abs(degrees) == 180
    assert quarter_turn(landmarks) == quarters
    image = np.zeros((900, 1000, 3), np.uint8)
    turned, upright = stand_up(image, landmarks)
    assert turned.shape[:2] == ((1000, 900) if quarters % 2 else (900, 1000))
    assert abs(tilt(upright)) <= 60


def test_photographs_stand_upright_before_they_are_measured(astronaut, points, detector):
    blank = np.zeros((64, 64, 3), np.uint8)
    images, faces = upright_faces([astronaut, np.ascontiguousarray(np.rot90(astronaut, 2)), blank], detector)
    assert faces.found.tolist() == [True, True, False] and np.isnan(faces.landmarks[2]).all()
    assert all(np.array_equal(image, astronaut) for image in images[:2]) and images[2] is blank
    assert np.array_equal(faces.landmarks[0], points) and np.abs(faces.landmarks[1] - points).max() < 5
    assert faces.widths[1] == pytest.approx(faces.widths[0], rel=0.15)
