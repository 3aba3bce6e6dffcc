"""`python -m eval.photos.recognition` on renders in the layout of photos."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

from eval.photos.recognition import chip_of, main, scores_of
from faceclip.people.framing import framed
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene
from faceclip.towers.dlib import CHIP, chip_points

dlib = pytest.mark.skipif(
    importlib.util.find_spec("face_recognition_models") is None, reason="needs face_recognition_models"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two photos of each of three people, and a person whose photos are dark or no photos."""
    root, renderer = tmp_path_factory.mktemp("people"), PortraitRenderer()
    for person in range(3):
        (root / f"person {person}").mkdir()
        for number in range(2):
            who = sample_identity(3, person)
            scene = framed(who, sample_scene(3, person, 0), "head", renderer.model)
            image = renderer.render(who, scene, 128).image
            Image.fromarray(image).save(root / f"person {person}" / f"{number}.png")
    (root / "nobody").mkdir()
    Image.fromarray(np.full((64, 64, 3), 9, np.uint8)).save(root / "nobody" / "0.png")
    (root / "nobody" / "1.png").write_bytes(b"no picture")
    return root


@pytest.mark.parametrize("name", ["tiny/recognizer", pytest.param("dlib", marks=dlib)])
def test_all_figures_are_measured(folder, tmp_path, name):
    out = tmp_path / "figures.json"
    assert main([f"photos={folder}", f'recognizers=["{name}"]', f"out={out}"]) == 0
    report = json.loads(out.read_text())
    assert report["detection"]["face found"]["value"] == pytest.approx(6 / 8)
    assert report["missed, by cause"]["dark"] == 1 and sum(report["missed, by cause"].values()) == 2
    assert report[name]["area under ROC, 1:1"]["value"] > 0.9 and report[name]["faces_per_second"] > 0
    assert report[name]["rank-1 by one photo"]["value"] == 1.0
    assert ("dlib, its own chip" in report) == (name == "dlib")


def test_likeness_by_hand():
    vectors = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(scores_of(vectors, euclidean=False)[0], [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(scores_of(vectors, euclidean=True)[0], [0, -2, -np.sqrt(2)], atol=1e-6)


def test_a_chip_has_the_points_where_they_belong_however_large_the_picture():
    points = chip_points().numpy()
    for zoom in (1, 5):
        picture = np.zeros((200 * zoom, 200 * zoom, 3), np.uint8)
        places = (points + 20) * zoom
        for x, y in np.round(places).astype(int):
            picture[y - 2 * zoom : y + 2 * zoom + 1, x - 2 * zoom : x + 2 * zoom + 1] = 255
        chip = chip_of(picture, places.astype(np.float32))
        assert chip.shape == (3, CHIP, CHIP)
        rows, columns = (points.round().astype(int)[:, axis] for axis in (1, 0))
        assert chip[0, torch.from_numpy(rows), torch.from_numpy(columns)].min() > 0.8
        assert chip.mean() < 0.05


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "photos"),
        (["photos=nowhere"], "photos=nowhere"),
        (["photos=.", "recognizers=[]"], "recognizers"),
        (["photos=.", "people=1"], "people"),
        (["photos=.", 'recognizers=["nobody"]'], "nobody"),
    ],
)
def test_bad_input_is_named(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "person").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "person" / name).touch()
    assert main(words) == 2
    assert named in capsys.readouterr().err
