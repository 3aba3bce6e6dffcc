"""What is read on a face: blendshapes, pose, light and colours by hand."""

import numpy as np
import pytest

from faceclip.captions.colors import HAIR_NAMES, NAMES, is_grey, most, name_hair_pixels, name_pixels, to_lab
from faceclip.captions.reader import read_colors, read_face, read_gaze, read_light, read_pose, read_size, said
from faceclip.captions.region_map import add_worn, map_regions
from faceclip.data.records import PHOTO_VOCABULARIES, REGIONS
from faceclip.face3d.camera import Camera, project
from faceclip.face3d.dense_points import default_dense_points
from faceclip.face3d.light import ambient_light, directional_light
from faceclip.faces.blendshapes import NAMES as SHAPES

SURE = 0.7
SIDE = 128


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Dense points (468, 2) of the head model, from the front."""
    places = default_dense_points()
    return places.of(project(places.head.vertices(), Camera(scale=1.2), SIDE))[:, :2]


@pytest.fixture(scope="module")
def drawn(points) -> tuple[np.ndarray, np.ndarray]:
    """A person in flat colours, and the share of the person in every pixel."""
    picture = np.full((SIDE, SIDE, 3), (40, 60, 200), np.uint8)  # blue behind her
    person = np.zeros((SIDE, SIDE), np.float32)
    chin, top = int(points[152, 1]), int(points[10, 1])
    left, right = points[:, 0].min(), points[:, 0].max()
    person[max(top - 15, 0) : chin + 2, int(left) - 6 : int(right) + 7] = 1
    person[chin + 2 :] = 1
    picture[person > 0] = (205, 160, 135)  # skin
    hair = person > 0
    hair[top + 2 :] = False
    picture[hair] = (20, 16, 14)
    picture[chin + 4 :] = (200, 20, 25)
    picture[chin + 4 : chin + 12, int(left) + 8 : int(right) - 7] = (205, 160, 135)
    return picture, person


def shapes(**values: float) -> dict[str, float]:
    return dict.fromkeys(SHAPES, 0.0) | values


def both(name: str, value: float) -> dict[str, float]:
    return {f"{name}Left": value, f"{name}Right": value}


def mouth(points: np.ndarray, gap: float) -> np.ndarray:
    """The points with lips so far apart, in widths of the mouth."""
    moved = points.copy()
    moved[14] = moved[13] + [0, gap * np.linalg.norm(moved[291] - moved[61])]
    return moved


@pytest.mark.parametrize(
    ("values", "gap", "expected"),
    [
        ({}, 0.0, {"expression": "neutral", "mouth": "closed", "brows": "resting", "eyes": "open"}),
        (both("mouthSmile", 0.9), 0.0, {"expression": "smile", "mouth": "closed", "brows": "resting", "eyes": "open"}),
        (both("mouthSmile", 0.9) | {"jawOpen": 0.4}, 0.4, {"expression": "laugh", "mouth": "open"}),
        (both("browOuterUp", 0.7) | {"jawOpen": 0.4}, 0.4, {"expression": "surprise", "brows": "raised"}),
        (both("eyeBlink", 0.8), 0.0, {"eyes": "closed"}),
        ({"eyeBlinkLeft": 0.8}, 0.0, {}),  # a wink is neither
    ],
)
def test_faces(points, values, gap, expected):
    found = said(read_face(shapes(**values), mouth(points, gap)), SURE)
    assert expected.items() <= found.items()
    assert all(value in PHOTO_VOCABULARIES[name] for name, value in found.items())
    if values == {"eyeBlinkLeft": 0.8}:
        assert found.get("eyes") != "closed"


def test_what_lies_at_the_border_is_not_said(points):
    found = said(read_face(shapes(**both("mouthSmile", 0.5), **both("eyeBlink", 0.55)), mouth(points, 0.09)), SURE)
    assert not {"expression", "eyes", "mouth"} & found.keys()
    assert said(read_pose(np.array([14.0, 11.0, 9.0])), SURE) == {}


def test_poses_and_gaze():
    assert said(read_pose(np.array([30.0, -25.0, 20.0])), SURE) == {"head": "right", "nod": "down", "tilt": "right"}
    assert said(read_pose(np.array([-30.0, 2.0, 1.0])), SURE) == {"head": "left", "nod": "level", "tilt": "upright"}
    ahead = np.zeros(3)
    assert said(read_gaze(shapes(), ahead), SURE) == {"gaze": "camera"}
    # The person's left is the picture's right.
    glance = shapes(eyeLookOutLeft=1.0, eyeLookInRight=1.0)
    assert said(read_gaze(glance, ahead), SURE) == {"gaze": "right"}
    assert said(read_gaze(glance, np.array([-30.0, 0, 0])), SURE) == {"gaze": "camera"}
    assert said(read_gaze(glance | both("eyeBlink", 0.9), ahead), SURE) == {}


@pytest.mark.parametrize(
    ("direction", "value"),
    [((-1, 0, 0.6), "left"), ((1, 0, 0.6), "right"), ((0, 1, 0.6), "above"), ((0, -1, 0.6), "below")],
)
def test_the_side_from_which_light_comes(direction, value):
    light = ambient_light(np.ones(3)) * 0.3 + directional_light(np.array(direction), np.ones(3))
    assert said(read_light(light), SURE) == {"light": value}
    assert said(read_light(ambient_light(np.ones(3))), SURE) == {"light": "even"}


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((10, 10, 10), "black"),
        ((128, 128, 128), "gray"),
        ((250, 250, 250), "white"),
        ((200, 20, 25), "red"),
        ((240, 130, 20), "orange"),
        ((240, 220, 40), "yellow"),
        ((30, 140, 50), "green"),
        ((30, 60, 170), "blue"),
        ((120, 30, 140), "purple"),
        ((240, 160, 180), "pink"),
        ((95, 60, 30), "brown"),
        ((220, 200, 170), "beige"),
    ],
)
def test_names_of_colours(rgb, name):
    lab = to_lab(np.full((10, 10, 3), rgb, np.uint8))
    reading = most(name_pixels(lab.reshape(-1, 3)), NAMES)
    assert reading is not None and (reading.value, reading.confidence) == (name, 1.0)
    assert most(name_pixels(lab[:1, :5].reshape(-1, 3)), NAMES) is None  # too few


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((18, 15, 14), "black"),
        ((90, 60, 40), "brown"),
        ((200, 165, 110), "blond"),
        ((140, 60, 25), "red"),
        ((165, 163, 160), "gray"),
    ],
)
def test_names_of_hair(rgb, name):
    lab = to_lab(np.full((1, 1, 3), rgb, np.uint8)).reshape(-1, 3)
    assert HAIR_NAMES[name_hair_pixels(lab)[0]] == name


def test_regions_and_colours_of_a_drawn_person(drawn, points):
    picture, person = drawn
    labels = map_regions(picture, person, points)
    assert {"background", "skin", "hair", "brows", "eyes", "nose", "lips", "clothes"} <= {
        REGIONS[label] for label in np.unique(labels)
    }
    nose, chin, top = (points[k].astype(int) for k in (1, 152, 10))
    assert REGIONS[labels[nose[1], nose[0]]] == "nose" and REGIONS[labels[2, 2]] == "background"
    assert REGIONS[labels[top[1] - 8, top[0]]] == "hair" and REGIONS[labels[-2, SIDE // 2]] == "clothes"
    assert REGIONS[labels[min(chin[1] + 5, SIDE - 1), chin[0]]] == "neck"
    found = said(read_colors(picture, labels, points), SURE)
    assert found["hair_color"] == "black" and found["background_color"] == "blue" and found["clothes_color"] == "red"
    grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    assert is_grey(to_lab(grey)) and read_colors(grey, labels, points) == {}


def test_another_person_behind_her_is_background(drawn, points):
    picture, person = drawn
    apart = person.copy()
    apart[:20, :8] = 1
    np.testing.assert_array_equal(map_regions(picture, apart, points), map_regions(picture, person, points))


def test_a_bald_head_has_no_colour_of_hair(drawn, points):
    picture, person = drawn
    bald = picture.copy()
    bald[(picture == (20, 16, 14)).all(axis=-1)] = (205, 160, 135)
    labels = map_regions(bald, person, points)
    assert (labels == REGIONS.index("hair")).mean() < 0.02
    assert "hair_color" not in said(read_colors(bald, labels, points), SURE)


def test_places_of_what_is_worn(drawn, points):
    labels = map_regions(*drawn, points)
    worn = add_worn(labels, points, frozenset({"glasses", "beard", "hat"}))
    count = {name: int((worn == REGIONS.index(name)).sum()) for name in ("glasses", "beard", "hat")}
    assert min(count.values()) > 50
    beneath = np.unique(labels[worn == REGIONS.index("hat")]).tolist()
    assert beneath == [REGIONS.index("hair")]
    assert (worn == REGIONS.index("lips")).sum() == (labels == REGIONS.index("lips")).sum()
    np.testing.assert_array_equal(add_worn(labels, points, frozenset()), labels)


def test_how_large_the_face_is():
    labels = np.zeros((100, 100), np.uint8)
    for side, value in ((15, "far"), (40, "medium"), (70, "close")):
        labels[:side, :side] = REGIONS.index("skin")
        assert said(read_size(labels), SURE) == {"face_size": value}
