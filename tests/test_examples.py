"""The examples: what search finds, and one line that says what to run where something is missing."""

import runpy
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faceclip.encoder import FaceCLIP
from faceclip.people.example import example_portrait
from faceclip.towers.pretrained import load_tower

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search.py", ".", "--text", "a man", "--model", "nowhere"], "nowhere has no config.json: give the export"),
        (["search.py", "nowhere", "--text", "a man", "--model", "."], "gallery: no folder nowhere; name one"),
        (["search.py", ".", "--text", "a man", "--model", "."], "error: "),
        (["photos.py", "--model", "."], "adapter.json is missing"),
        (["fitted_photos.py", "--renders", "0"], "PICTURES: name some"),
        (["fitted_photos.py", "[a.jpg, b.jpg]", "--out", "sheet.xyz"], "--out=sheet.xyz: "),
    ],
)
def test_missing_inputs_are_named(tmp_path, monkeypatch, capsys, arguments, message):
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


def test_search_finds_people_with_the_encoder_that_ships(tmp_path, monkeypatch, capsys):
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    for number in range(4):
        example_portrait(number).save(gallery / f"{number}.png")
    example_portrait(1, picture=2).save(tmp_path / "another.png")
    query = ["--face", str(tmp_path / "another.png"), "--count", "1"]
    monkeypatch.setattr("sys.argv", ["search.py", str(gallery), *query])
    runpy.run_path(str(EXAMPLES / "search.py"), run_name="__main__")
    assert capsys.readouterr().out.split()[1] == str(gallery / "1.png")


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> Path:
    """A folder with a tiny pipeline of random weights in `model`, a portrait, and a mask."""
    from tests.makeup_plugin.conftest import make_pipeline

    folder = tmp_path_factory.mktemp("drawing")
    pipeline = make_pipeline()
    pipeline.register_to_config(default_call={"num_inference_steps": 2})
    pipeline.save_pretrained(folder / "model")
    portrait = Image.open(files("skimage") / "data/astronaut.png").convert("RGB").crop((128, 0, 320, 192))
    portrait.save(folder / "portrait.png")
    portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    mask = Image.new("L", portrait.size)
    mask.paste(255, (0, 0, 192, 64))
    mask.save(folder / "mask.png")
    return folder


def run_example(monkeypatch, folder: Path, name: str, *words: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize(
    ("name", "words", "pictures"),
    [
        ("draw.py", ["portrait.png", "--prompts", "[a man, a woman, a man old]"], 3),
        ("several_photos.py", ["[portrait.png, mirrored.png]", "--keep", "person.safetensors"], 1),
        ("mix.py", ["portrait.png", "mirrored.png", "--steps", "3"], 3),
        ("pose.py", ["portrait.png", "mirrored.png"], 2),
        ("two_people.py", ["portrait.png", "mirrored.png", "--left-prompt", "a man", "--right-prompt", "a woman"], 1),
    ],
)
def test_every_example_draws(drawing, tmp_path, monkeypatch, name, words, pictures):
    prompt = [] if name == "draw.py" else ["--prompt", "a man"]
    run_example(monkeypatch, drawing, name, *words, *prompt, "--model", "model", "--out", str(tmp_path))
    assert len(list(tmp_path.glob("*.png"))) == pictures


def test_the_sheet_of_people_has_a_row_for_each(drawing, tmp_path, monkeypatch):
    words = ["--people", "[0, 3]", "--prompts", "[a man]", "--model", "model", "--out", str(tmp_path / "sheet.png")]
    run_example(monkeypatch, drawing, "people.py", *words)
    one, two = (tmp_path / name for name in ("one.png", "sheet.png"))
    run_example(monkeypatch, drawing, "people.py", "--people", "[0]", *words[2:-1], str(one))
    heights = [Image.open(path).height for path in (one, two)]
    assert heights[1] > heights[0]


def test_pictures_outside_of_the_edited_part_stay(drawing, tmp_path, monkeypatch):
    words = ["portrait.png", "mask.png", "--prompt", "a man", "--model", "model", "--out", str(tmp_path)]
    run_example(monkeypatch, drawing, "edit.py", *words)
    before, after = (np.asarray(Image.open(path)) for path in (drawing / "portrait.png", tmp_path / "image_0000.png"))
    assert np.array_equal(before[64:], after[64:]) and not np.array_equal(before[:64], after[:64])


def test_scales_are_a_table(drawing, tmp_path, monkeypatch):
    words = ["portrait.png", "--identity", "[0, 1]", "--shading", "[0, 1, 0.5]", "--prompt", "a man"]
    run_example(monkeypatch, drawing, "scales.py", *words, "--model", "model", "--out", str(tmp_path / "table.png"))
    cells = np.asarray(Image.open(tmp_path / "table.png")).reshape(3, 32, 2, 32, 3).transpose(0, 2, 1, 3, 4)
    assert len({cell.tobytes() for cell in cells.reshape(6, -1)}) == 6


def test_provenance_is_told(drawing, tmp_path, monkeypatch, capsys):
    run_example(
        monkeypatch,
        drawing,
        "draw.py",
        "portrait.png",
        "--prompts",
        "[a man]",
        "--model",
        "model",
        "--out",
        str(tmp_path),
    )
    Image.open(drawing / "portrait.png").save(tmp_path / "photo.png")
    (tmp_path / "text.jpg").write_text("no picture")
    capsys.readouterr()
    run_example(monkeypatch, drawing, "provenance.py", str(tmp_path))
    first, photo, text = capsys.readouterr().out.splitlines()
    assert "image_0000.png: record of model, seed 0" in first
    assert photo == "photo.png: no record, no watermark" and text.startswith("text.jpg: ")
