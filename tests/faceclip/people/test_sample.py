"""Identities and scenes by golden numbers: another draw would make other people of every seed, and other data sets."""

import json
from pathlib import Path

import numpy as np
import pytest

from faceclip.data.records import VOCABULARIES
from faceclip.people.parameters import Identity, Scene
from faceclip.people.sample import sample_identity, sample_scene

# What `identity_numbers` and `scene_numbers` give of the people and scenes below.
GOLDEN = json.loads((Path(__file__).parent / "golden_sample.json").read_text())


def identity_numbers(identity: Identity) -> np.ndarray:
    wave = np.cos(np.arange(len(identity.shape)))  # so that every coefficient counts in its place
    return np.array(
        [
            identity.shape @ wave,
            *identity.skin_tone,
            *identity.lip_tone,
            *identity.eye_color,
            identity.freckles,
            identity.age_lines,
            identity.brow_thickness,
            identity.brow_arch,
            identity.detail_seed / 2**31,
        ]
    )


def scene_numbers(scene: Scene) -> np.ndarray:
    words = np.array([VOCABULARIES[name].index(word) for name, word in scene.attributes.items()])
    waves = [np.cos(np.arange(values.size)) @ values.ravel() for values in (scene.light, scene.expression, words)]
    return np.array([*scene.pose, *scene.camera.to_array(), *scene.gaze, *waves, scene.detail_seed / 2**31])


def test_people_are_those_of_earlier_releases() -> None:
    people = np.array([identity_numbers(sample_identity(7, index)) for index in range(60)])
    np.testing.assert_allclose(people[3], GOLDEN["person"], atol=1e-4)
    np.testing.assert_allclose(people.mean(axis=0), GOLDEN["people"], atol=1e-4)


def test_scenes_are_those_of_earlier_releases() -> None:
    scenes = np.array([scene_numbers(sample_scene(7, index % 6, index // 6)) for index in range(60)])
    np.testing.assert_allclose(scenes[20], GOLDEN["scene"], atol=1e-4)
    np.testing.assert_allclose(scenes.mean(axis=0), GOLDEN["scenes"], atol=1e-4)
    frontal = scene_numbers(sample_scene(7, 3, 2, frontal=True))
    np.testing.assert_allclose(frontal, GOLDEN["frontal"], atol=1e-4)


def test_numbers_stay_in_their_ranges() -> None:
    people = [sample_identity(1, index) for index in range(200)]
    shapes = np.stack([person.shape for person in people])
    assert np.abs(shapes).max() == pytest.approx(2.2)
    tones = np.stack([np.concatenate([person.skin_tone, person.lip_tone, person.eye_color]) for person in people])
    assert tones.min() >= 0.05 and tones.max() <= 1.0
    scenes = [sample_scene(1, index, 1) for index in range(400)]
    limits = np.abs([scene.pose for scene in scenes]).max(axis=0)
    assert limits[0] <= 60 and limits[1] <= 25 and limits[2] <= 15
    assert limits[0] > 55 and limits[1] > 20 and limits[2] > 12
    for scene in scenes[:50]:
        assert 0.93 < scene.camera.scale < 1.07 and 11 <= scene.camera.distance <= 20


def test_seed_person_and_picture_all_decide_a_scene() -> None:
    base = scene_numbers(sample_scene(2, 3, 4))
    for other in ((3, 3, 4), (2, 4, 4), (2, 3, 5), (2, 4, 3)):
        assert np.abs(scene_numbers(sample_scene(*other)) - base).max() > 0.1
    assert np.abs(identity_numbers(sample_identity(2, 3)) - identity_numbers(sample_identity(3, 2))).max() > 0.1
