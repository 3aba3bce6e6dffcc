"""What the page does with the pipeline, without a browser."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faceclip.errors import ConfigError, ImageTooLargeError, NoFaceError, UnreadableImageError
from makeup_plugin.app import painter as module
from makeup_plugin.app.painter import Limits, Order, Painter
from makeup_plugin.marking.provenance import read_provenance


@pytest.fixture
def painter(pipeline, tmp_path):
    return Painter(pipeline, tmp_path, Limits(pictures=2, steps=8, pixels=40_000, characters=20))


@pytest.fixture
def portrait(tmp_path):
    path = tmp_path / "portrait.png"
    Image.open(files("skimage") / "data/astronaut.png").convert("RGB").crop((128, 0, 320, 192)).save(path)
    return path


def test_a_drawing_has_files_with_provenance_and_the_face_and_map_that_were_used(painter, portrait):
    steps = []
    order = Order(prompt="a man", photos=[portrait], count=2, seed=3, steps=2)
    result = painter.draw(order, lambda done, all_: steps.append((done, all_)))
    assert steps == [(1, 2), (2, 2)]
    assert [read_provenance(file)["seed"] for file in result.files] == [3, 4]
    assert [record["seed"] for record in result.records] == [3, 4]
    assert result.face.tobytes() == painter.find_face(portrait).tobytes()
    assert result.shading_map.size == (32, 32)


def test_several_photos_are_one_person(painter, portrait):
    result = painter.draw(Order(prompt="a man", photos=[portrait, portrait], steps=1))
    assert len(result.files) == 1 and result.records[0]["has_reference_face"]
    assert result.face.tobytes() == painter.find_face(portrait).tobytes()


def test_words_alone_have_neither_face_nor_map(painter):
    result = painter.draw(Order(prompt="a man", steps=1, identity_scale=0.0))
    assert result.face is None and result.shading_map is None and not result.records[0]["has_reference_face"]


def test_files_of_the_latest_drawings_stay_and_older_ones_go(painter, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 1)
    first, second = (painter.draw(Order(prompt="a man", steps=1)).files[0] for _ in range(2))
    assert second.is_file() and not first.parent.exists()


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"count": 3}, "pictures"),
        ({"photos": [Path("a.png")] * 9}, "photos"),
        ({"count": 0}, "pictures"),
        ({"steps": 9}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"prompt": "a" * 21}, "prompt"),
        ({"negative_prompt": "a" * 21}, "negative prompt"),
    ],
)
def test_an_order_beyond_the_limits_is_rejected(painter, changes, argument):
    with pytest.raises(ConfigError, match=f"^{argument}"):
        painter.draw(Order(**{"prompt": "a man", **changes}))


def test_messages_name_a_photo_and_not_its_place(painter, tmp_path):
    for name, size in (("large.png", (201, 200)), ("plain.png", (99, 99))):
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "text.png").write_text("no picture")
    for name, error in (
        ("large.png", ImageTooLargeError),
        ("text.png", UnreadableImageError),
        ("plain.png", NoFaceError),
    ):
        with pytest.raises(error, match=name) as found:
            painter.find_face(tmp_path / name)
        assert str(tmp_path) not in str(found.value)
    with pytest.raises(ImageTooLargeError, match=r"pose photo large\.png"):
        painter.draw(Order(prompt="a man", steps=1, pose_photo=tmp_path / "large.png"))


@pytest.mark.parametrize("painted", [True, False])
def test_an_edit_changes_what_was_painted_or_all(painter, portrait, painted):
    picture = np.asarray(Image.open(portrait))[:144]  # 192 × 144
    mask = None
    if painted:
        mask = np.zeros(picture.shape[:2], dtype=bool)
        mask[:72] = True
    result = painter.edit(Order(prompt="a man", steps=4), picture, mask, 0.5)
    edited = np.asarray(Image.open(result.files[0]))
    small = np.asarray(Image.fromarray(picture).resize((32, 24), Image.Resampling.LANCZOS))
    assert edited.shape == small.shape
    assert np.array_equal(edited[12:], small[12:]) == painted and not np.array_equal(edited[:12], small[:12])
    assert result.records[0]["has_reference_face"]


def test_a_picture_beyond_the_limit_is_not_edited(painter):
    with pytest.raises(ImageTooLargeError, match="picture"):
        painter.edit(Order(prompt="a man", steps=1), np.zeros((201, 200, 3), np.uint8), None, 0.5)
