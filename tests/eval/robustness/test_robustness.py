"""The command on renders, attacks on whole photos, and the figures of damaged references."""

import json

import numpy as np
import pytest

from eval.benchmark.panel import load_recognizer
from eval.benchmark.references import read_renders
from eval.judges.panel import embed_faces
from eval.robustness.__main__ import RobustnessSettings, drawn_conditions, main
from eval.robustness.attacks import attack_photos, check_differentiable, crop_for
from eval.robustness.measure import CLEAN, Condition, Yardstick, conditions, subjects_of
from faceclip.errors import ConfigError, EmptyDatasetError
from faceclip.faces.align import encoder_crop
from faceclip.faces.batches import labelled_faces, to_unit


@pytest.fixture(scope="module")
def recognizer():
    return load_recognizer("shipped")[0]


@pytest.fixture(scope="module")
def subjects(tiny_dataset):
    return subjects_of(read_renders(tiny_dataset, "train", people=4, each=3, size=None))


@pytest.mark.parametrize("size", [20, 112])
def test_the_crop_with_a_gradient_is_that_of_the_encoders(subjects, size):
    image, points = subjects.images[0], subjects.landmarks[0]
    pixels = to_unit(image[None]).requires_grad_(True)
    crop = crop_for(pixels, points, size)
    truth = to_unit(encoder_crop(image, points, size)[None])
    assert (crop - truth).abs().mean() < 2.5 / 255
    crop.sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_an_attacked_photo_leaves_its_person_and_stays_near_itself(subjects, recognizer):
    embed, size = recognizer
    images, points = subjects.images[:2], subjects.landmarks[:2]
    clean = embed_faces(embed, size, images, labelled_faces(points))
    kept = {}
    for kind in ("FGSM", "PGD"):
        moved = attack_photos(kind, images, points, embed, size, levels=4, steps=4)
        for before, after in zip(images, moved, strict=True):
            assert after.shape == before.shape and after.dtype == np.uint8
            assert 0 < np.abs(after.astype(int) - before).max() <= 4
        kept[kind] = (embed_faces(embed, size, moved, labelled_faces(points)) * clean).sum(axis=1).mean()
    assert kept["PGD"] < kept["FGSM"] < 0.95


def test_a_fraction_of_a_level_is_refused(subjects, recognizer):
    embed, size = recognizer
    with pytest.raises(ConfigError, match=r"^levels .* 2\.5"):
        attack_photos("FGSM", subjects.images[:1], subjects.landmarks[:1], embed, size, levels=2.5)


def test_a_pipeline_draws_from_the_strongest_attack(tmp_path):
    settings = RobustnessSettings(data=tmp_path, out=tmp_path, attacks="8,2,4")
    drawn = drawn_conditions(conditions((), settings.levels))
    assert [(one.name, one.strength) for one in drawn] == [(CLEAN, 0), ("FGSM", 8), ("PGD", 8)]


def test_a_recognizer_without_a_gradient_is_named():
    with pytest.raises(ConfigError, match="stone"):
        check_differentiable(lambda crops: crops.detach().flatten(1), 8, "stone")


def test_a_black_photo_keeps_nothing(subjects, recognizer):
    yardstick = Yardstick({"shipped": recognizer}, subjects)
    black = [np.zeros_like(image) for image in subjects.images]
    (found,) = yardstick.measure(Condition(name=CLEAN, strength=0), black)
    assert found.detection.value == 0 and found.cosine is None and found.rank_1.value == 0


def test_persons_with_one_photo_are_refused(tiny_dataset):
    with pytest.raises(EmptyDatasetError, match="two photos"):
        subjects_of(read_renders(tiny_dataset, "train", people=4, each=1, size=None))


def test_the_command_measures_renders_and_pictures(tiny_dataset, pipeline_export, tmp_path):
    words = ["--data", str(tiny_dataset), "--out", str(tmp_path), "--recognizers", "shipped", "--people", "2"]
    words += ["--damages", "JPEG quality,mask", "--attacks", "8", "--steps", "2"]
    words += ["--model", str(pipeline_export), "--pictures", "1", "--sampler-steps", "1"]
    assert main(words) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    names = [(item["condition"]["name"], item["condition"]["strength"]) for item in content["kept"]]
    assert names[0] == (CLEAN, 0) and ("JPEG quality", 5) in names and names[-2:] == [("FGSM", 8), ("PGD", 8)]
    assert content["kept"][0]["cosine"] is None or content["kept"][0]["cosine"]["value"] > 0.3
    assert content["attacked"] == "shipped" and content["data"]["licence"] == "CC0-1.0"
    drawn = [(item["condition"]["name"], item["condition"]["strength"]) for item in content["pictures"]]
    assert drawn == [(CLEAN, 0), ("JPEG quality", 5), ("mask, share", 1), ("FGSM", 8), ("PGD", 8)]
    page = (tmp_path / "report.html").read_text()
    assert "Attacks" in page and "JPEG quality" in page


def test_the_joint_embedding_is_a_recognizer(joint_export, tiny_dataset, tmp_path):
    words = ["--data", str(tiny_dataset), "--out", str(tmp_path), "--recognizers", f"joint:{joint_export}"]
    assert main([*words, "--people", "2", "--damages", "blur", "--attacks", ""]) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["attacked"] is None and len(content["kept"]) == 6


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--photos"),
        (["--photos", "a"], "--licence"),
        (["--data", "a", "--damages", "fire"], "--damages"),
        (["--data", "a", "--attacks", "much"], "--attacks"),
        (["--data", "a", "--attacks", "300"], "--attacks"),
        (["--data", "a", "--attacks", "2.5"], "--attacks"),
        (["--data", "a", "--people", "1"], "--people"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, named, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), *words]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()
