"""Portraits: deterministic, labelled consistently, and independent where they must be."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faceclip.data.records import REGIONS, VOCABULARIES
from faceclip.people import skin
from faceclip.people.framing import framed
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene

SIZE = 96


@pytest.fixture(scope="module")
def renderer() -> PortraitRenderer:
    return PortraitRenderer()


def scene_with(seed: int = 3, **words: str):
    """A frontal scene with chosen words."""
    scene = sample_scene(seed, 0, 0)
    scene.attributes.update({"hair_length": "short", "beard": "none", "makeup": "none"} | words)
    return scene


def share(portrait, region: str) -> float:
    return float((portrait.regions == REGIONS.index(region)).mean())


def test_same_seed_same_pixels(renderer):
    first = renderer.render(sample_identity(1, 4), sample_scene(1, 4, 2), SIZE)
    again = PortraitRenderer().render(sample_identity(1, 4), sample_scene(1, 4, 2), SIZE)
    for name in ("image", "regions", "shading", "landmarks_5", "landmarks_68"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def golden_sheet(renderer: PortraitRenderer) -> np.ndarray:
    """Ten people in as many turned poses, who wear every word of the vocabulary: picture, regions, shading."""
    columns = []
    for number in range(10):
        scene = sample_scene(3, number, 1)
        words = {name: vocabulary[number % len(vocabulary)] for name, vocabulary in VOCABULARIES.items()}
        if number >= 8:  # hats and glasses hide much of the others
            words |= {"hat": "none", "glasses": "none"}
        scene.attributes.update({name: word for name, word in words.items() if name != "expression"})
        portrait = renderer.render(sample_identity(3, number), scene, SIZE)
        regions = np.repeat(portrait.regions[..., None] * 16, 3, axis=2)
        columns.append(np.concatenate([portrait.image, regions, portrait.shading]))
    return np.concatenate(columns, axis=1)


def test_portraits_are_those_of_earlier_releases(renderer):
    """To the rounding of single pixels: a data set is told by its seed, and towers were trained on such pictures.

    After a change that is meant to be seen: `Image.fromarray(golden_sheet(renderer)).save(…)` writes the file anew.
    """
    with Image.open(Path(__file__).parent / "golden_portraits.png") as image:
        expected = np.asarray(image).astype(int)
    difference = np.abs(golden_sheet(renderer).astype(int) - expected).max(axis=2)
    assert (difference > 1).sum() <= 5, np.argwhere(difference > 1)[:10]


def test_landmarks_are_those_of_earlier_releases(renderer):
    portrait = renderer.render(sample_identity(3, 1), sample_scene(3, 1, 1), SIZE)
    expected = [[33.491, 44.437], [49.101, 41.961], [40.982, 56.34], [35.782, 67.154], [51.026, 65.382]]
    np.testing.assert_allclose(portrait.landmarks_5, expected, atol=0.01)
    assert portrait.landmarks_68.mean(axis=0) == pytest.approx([43.129, 56.736], abs=0.01)
    # Outer corners of the eyes, the nose tip and the corners of the mouth stand among the 68 in the usual order.
    assert np.abs(portrait.landmarks_68[30] - portrait.landmarks_5[2]).max() < 2
    assert np.abs(portrait.landmarks_68[[48, 54]] - portrait.landmarks_5[3:]).max() < 2


def test_only_the_last_few_people_are_kept(monkeypatch: pytest.MonkeyPatch):
    renderer = PortraitRenderer(keep=2)
    people = [sample_identity(1, index) for index in range(3)]
    first = [renderer.render(person, scene_with(), 32).image for person in people]
    painted, paint = [], skin.paint_skin
    monkeypatch.setattr(skin, "paint_skin", lambda person: painted.append(person.index) or paint(person))
    again = [renderer.render(people[index], scene_with(), 32).image for index in (1, 0, 1, 2, 1, 2)]
    assert painted == [0, 2]  # the longest unused goes
    wanted = [first[index] for index in (1, 0, 1, 2, 1, 2)]
    assert all(np.array_equal(one, two) for one, two in zip(wanted, again, strict=True))


def test_shapes_and_types(renderer):
    portrait = renderer.render(sample_identity(1, 0), sample_scene(1, 0, 0), SIZE)
    assert portrait.image.shape == portrait.shading.shape == (SIZE, SIZE, 3)
    assert portrait.image.dtype == portrait.regions.dtype == np.uint8
    assert portrait.regions.max() < len(REGIONS)
    assert portrait.landmarks_68.shape == (68, 2)


@pytest.mark.parametrize(
    ("words", "region"),
    [
        ({"glasses": "sunglasses"}, "glasses"),
        ({"hat": "cap"}, "hat"),
        ({"beard": "full"}, "beard"),
        ({"beard": "stubble"}, "beard"),
        ({"hair_length": "long"}, "hair"),
    ],
)
def test_worn_things_are_labelled(renderer, words, region):
    bare = {"glasses": "none", "hat": "none", "beard": "none", "hair_length": "bald"}
    identity = sample_identity(1, 0)
    without = share(renderer.render(identity, scene_with(**bare), SIZE), region)
    with_it = share(renderer.render(identity, scene_with(**(bare | words)), SIZE), region)
    assert without == 0
    assert with_it > 0.005


def test_landmarks_lie_on_their_regions(renderer):
    portrait = renderer.render(sample_identity(1, 0), scene_with(glasses="none", hat="none"), SIZE)
    nose = np.round(portrait.landmarks_5[2]).astype(int)
    assert REGIONS[portrait.regions[nose[1], nose[0]]] == "nose"
    for eye in np.round(portrait.landmarks_5[:2]).astype(int):
        around = portrait.regions[eye[1] - 2 : eye[1] + 3, eye[0] - 2 : eye[0] + 3]
        assert (around == REGIONS.index("eyes")).any()


def test_hair_color_changes_hair_and_not_skin(renderer):
    identity = sample_identity(1, 0)
    black, blond = (renderer.render(identity, scene_with(hair_color=c, hat="none"), SIZE) for c in ("black", "blond"))
    np.testing.assert_array_equal(black.regions, blond.regions)
    hair, skin = black.regions == REGIONS.index("hair"), black.regions == REGIONS.index("skin")
    assert blond.image[hair].mean() > black.image[hair].mean() + 40
    assert abs(blond.image[skin].mean() - black.image[skin].mean()) < 6


def test_identity_and_scene_streams_are_apart():
    # The scene of a person does not depend on who they are, and no two people share a face.
    assert sample_scene(5, 1, 3).attributes == sample_scene(5, 1, 3).attributes
    shapes = np.stack([sample_identity(5, i).shape for i in range(50)])
    distances = np.linalg.norm(shapes[:, None] - shapes[None], axis=-1) + 99 * np.eye(50)
    assert distances.min() > 3


def test_attributes_are_independent_of_identity_and_balanced():
    words = [sample_scene(5, i, k).attributes for i in range(150) for k in range(1, 5)]
    for name, vocabulary in VOCABULARIES.items():
        shares = np.array([np.mean([w[name] == v for w in words]) for v in vocabulary])
        assert shares.min() > 0.03, name
        assert shares.sum() == pytest.approx(1)
    hats = np.array([[sample_scene(5, i, k).attributes["hat"] == "none" for k in range(1, 9)] for i in range(60)])
    # Between people the share of bare heads varies no more than chance makes it: binomial, n = 8.
    assert hats.mean(1).std() < 1.5 * np.sqrt(0.58 * 0.42 / 8)


def test_first_picture_is_a_gallery_picture():
    for index in range(20):
        scene = sample_scene(9, index, 0)
        assert max(abs(a) for a in scene.pose) <= 3
        assert scene.attributes["glasses"] == scene.attributes["hat"] == "none"
        assert scene.attributes["expression"] == "neutral"
    yaw = np.array([sample_scene(9, i, 1).pose[0] for i in range(300)])
    assert np.abs(yaw).max() <= 60
    assert (np.abs(yaw) > 40).mean() > 0.05


def test_the_head_fills_its_framing_whoever_it_is(renderer):
    widths, middles, labels = [], [], []
    for index in range(12):
        for number in range(3):
            identity, scene = sample_identity(5, index), sample_scene(5, index, number)
            close = framed(identity, scene, "head", renderer.model)
            assert framed(identity, scene, "bust", renderer.model) is scene
            portrait = renderer.render(identity, close, SIZE)
            points = portrait.landmarks_68 / SIZE
            assert points.min() > 0 and points.max() < 1
            if number == 0:
                widths.append(np.ptp(points[:, 0]))
                middles.append(points[:, 0].mean())
            # The shading map and the label map are drawn by the same camera.
            lit, skin = portrait.shading.any(-1), portrait.regions == REGIONS.index("skin")
            labels.append((lit & (portrait.regions == REGIONS.index("background"))).sum() / max(1, skin.sum()))
    assert 0.43 < np.mean(widths) < 0.55 and np.abs(np.array(middles) - 0.5).max() < 0.1
    assert max(labels) < 0.05


def test_a_framing_moves_the_camera_alone(renderer):
    identity, scene = sample_identity(5, 2), sample_scene(5, 2, 4)
    close = framed(identity, scene, "head", renderer.model)
    assert close.camera.distance == scene.camera.distance
    assert (close.pose, close.attributes, close.detail_seed) == (scene.pose, scene.attributes, scene.detail_seed)
    wide, near = (renderer.render(identity, one, SIZE).landmarks_68 for one in (scene, close))
    fitted = [np.polyfit(wide[:, axis], near[:, axis], 1) for axis in (0, 1)]
    ratio = close.camera.scale / scene.camera.scale
    np.testing.assert_allclose([slope for slope, _ in fitted], ratio, rtol=1e-4)
