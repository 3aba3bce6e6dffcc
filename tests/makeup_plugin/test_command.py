"""`python -m makeup_plugin`: pictures with provenance, and one line for every mistake."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from makeup_plugin.__main__ import main
from makeup_plugin.loading import load_pipeline
from makeup_plugin.marking.provenance import read_provenance


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a tiny pipeline with all channels."""
    from tests.makeup_plugin.conftest import make_pipeline

    directory = tmp_path_factory.mktemp("model") / "pipeline"
    make_pipeline().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def portrait(tmp_path_factory):
    """A photo that ships with scikit-image, around its face."""
    path = tmp_path_factory.mktemp("photo") / "portrait.png"
    Image.open(files("skimage") / "data/astronaut.png").convert("RGB").crop((128, 0, 320, 192)).save(path)
    return path


def test_pictures_with_provenance_and_the_next_numbers(model, portrait, tmp_path, capsys):
    out = tmp_path / "pictures"
    words = ["a man", "--image", str(portrait), "--model", str(model), "--out", str(out), "--steps", "2"]
    assert main([*words, "--count", "2", "--seed", "5", "--negative", "a woman"]) == 0
    assert capsys.readouterr().out.split() == [str(out / f"image_000{number}.png") for number in (0, 1)]
    record = read_provenance(out / "image_0001.png")
    assert record["seed"] == 6 and record["has_reference_face"] and record["prompt"] is None
    assert record["settings"]["num_inference_steps"] == 2 and record["settings"]["guidance_scale"] == 5.0

    assert main([*words, "--seed", "6", "--negative", "a woman", "--format", "webp", "--record-prompt"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["image_0000.png", "image_0001.png", "image_0002.webp"]
    assert read_provenance(out / "image_0002.webp")["prompt"] == "a man"
    # The second picture of a series is the first one of the series that begins with its seed.
    assert main([*words, "--seed", "6", "--negative", "a woman"]) == 0
    again, before = (np.asarray(Image.open(out / f"image_{number}.png")).astype(int) for number in ("0003", "0001"))
    assert np.abs(again - before).max() <= 1


def test_the_prompt_alone_and_channels_off(model, tmp_path):
    words = ["prompt=a=b", "--model", str(model), "--out", str(tmp_path), "--steps", "1", "--no-watermark"]
    assert main([*words, "--identity-scale", "0", "--shading-scale", "0"]) == 0
    record = read_provenance(tmp_path / "image_0000.png")
    assert not record["has_reference_face"] and record["watermark"] is None
    assert record["settings"]["identity_scale"] == record["settings"]["shading_scale"] == 0


def test_several_photos_are_one_person_who_is_kept_in_a_file(model, portrait, tmp_path):
    words = ["a man", "--model", str(model), "--out", str(tmp_path), "--steps", "1"]
    person = tmp_path / "person.safetensors"
    assert main([*words, "--image", f"[{portrait}, {portrait}]", "--save-identity", str(person)]) == 0
    assert main([*words, "--identity", str(person)]) == 0
    assert (tmp_path / "image_0000.png").read_bytes() == (tmp_path / "image_0001.png").read_bytes()
    assert read_provenance(tmp_path / "image_0001.png")["has_reference_face"]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ([], "PROMPT"),
        (["a man", "--imag", "x.png"], "--imag"),
        (["a man", "another man"], "another man"),
        (["a man", "--image", "nowhere.png"], "--image nowhere.png"),
        (["a man", "--shading-image", "nowhere.png"], "--shading-image nowhere.png"),
        (["a man", "--image", "[noise.png, nowhere.png]"], "--image nowhere.png"),
        (["a man", "--image", "noise.png", "--identity", "file"], "--identity"),
        (["a man", "--save-identity", "person.safetensors"], "--save-identity"),
        (["a man", "--model", "MODEL", "--identity", "file"], "file"),
        (["a man", "--count", "0"], "--count"),
        (["a man", "--seed", "-1"], "--seed"),
        (["a man", "--model", "nowhere"], "nowhere"),
        (["a man", "--model", "MODEL", "--device", "abacus"], "--device=abacus"),
        (["a man", "--model", "MODEL", "--device", "meta"], "--device=meta"),
        (["a man", "--model", "MODEL", "--dtype", "int8"], "--dtype"),
        (["a man", "--model", "MODEL", "--height", "30"], "30"),
        (["a man", "--model", "MODEL", "--out", "file"], "--out file"),
        (["a man", "--model", "MODEL", "--out", "/"], "--out /"),
        (["a man", "--model", "MODEL", "--image", "noise.png"], "image 0"),
    ],
)
def test_every_mistake_is_one_line_and_leaves_no_folder(model, tmp_path, monkeypatch, capsys, words, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    Image.new("RGB", (64, 64)).save("noise.png")
    assert main([str(model) if word == "MODEL" else word for word in words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and place in last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "noise.png"]


def test_a_pipeline_loads_in_the_precision_that_is_asked_for(model):
    assert load_pipeline(model, device="cpu", dtype="bfloat16").unet.dtype == torch.bfloat16
