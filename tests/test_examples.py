"""The examples: what search finds, and one line that says what to run where something is missing."""

import runpy
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image

from faceclip.encoder import FaceCLIP
from faceclip.towers.pretrained import load_tower

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search.py", ".", "--text", "a man"], "no folder runs/demo/encoder/export; make it by `make demo` or"),
        (["search.py", "nowhere", "--text", "a man", "--model", "."], "gallery: no folder nowhere; name one"),
        (["search.py", ".", "--text", "a man", "--model", "."], "error: "),
        (["photos.py"], "no folder runs/demo/generator/export; make it by `make demo` or"),
        (["photos.py", "--model", "."], "adapter.json is missing"),
    ],
)
def test_what_is_missing_is_told(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLES / arguments[0]), run_name="__main__")
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """An export of stage 1 that nothing has trained: shipped towers under a small fusion and heads."""
    directory = tmp_path_factory.mktemp("export")
    kinds = {"recognizer": "face", "text_tower_l": "text", "text_tower_g": "text"}
    towers = [load_tower(f"tiny/{name}", kind) for name, kind in kinds.items()]
    torch.manual_seed(0)
    FaceCLIP.from_components(*towers, fusion={"layers": 1}, joint={}).save_pretrained(directory)
    load_tower("tiny/image_tower", "image").save_pretrained(directory / "image_tower")
    return directory


def test_search_sees_the_square_around_the_face_wherever_it_lies(export, tmp_path, monkeypatch, capsys):
    photo = Image.open(files("skimage") / "data/astronaut.png").convert("RGB").crop((64, 0, 384, 320))
    photo.save(tmp_path / "alone.png")
    wide = Image.new("RGB", (960, 320), "gray")
    wide.paste(photo, (400, 0))
    wide.save(tmp_path / "wide.png")
    query = ["--text", "a person with a hat"]  # alone: then the score is that of the image tower's embedding
    monkeypatch.setattr("sys.argv", ["search.py", str(tmp_path), *query, "--model", str(export)])
    runpy.run_path(str(EXAMPLES / "search.py"), run_name="__main__")
    scores = {Path(name).stem: float(score) for score, name in map(str.split, capsys.readouterr().out.splitlines())}
    assert scores.keys() == {"alone", "wide"}
    assert scores["alone"] == scores["wide"]  # whole pictures, squashed, give .196 and .180
