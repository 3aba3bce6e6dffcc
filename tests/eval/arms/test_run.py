"""The command on an untrained pipeline: every arm, resuming, and mixing of runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from eval.arms.__main__ import main
from eval.arms.arms import claim_folder, fitted_maps
from eval.arms.run import require_gallery
from eval.hashes import model_hash
from faceclip.data.arrays import load_arrays
from faceclip.errors import ConfigError, DataError
from faceclip.retrieval.labels import labels_of
from makeup_plugin.loading import load_pipeline
from makeup_plugin.marking.provenance import read_provenance


@pytest.fixture(scope="module")
def arguments(pipeline_export, judge_exports, tiny_dataset) -> list[str]:
    paths = ["--model", str(pipeline_export), "--data", str(tiny_dataset), "--judge", str(judge_exports[0])]
    paths += ["--second-recognizer", str(judge_exports[1])]
    return [*paths, "--images-per-arm", "5", "--steps", "2", "--batch", "4"]


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("generation")
    assert main([*arguments, "--out", str(out)]) == 0
    return out


def test_every_arm_is_made_and_scored(finished, tiny_dataset):
    text = (finished / "results.json").read_text()
    assert "NaN" not in text and "null" in text  # with five prompts some attribute is never named
    content = json.loads(text)
    assert list(content["arms"]) == ["text", "joint", "identity", "shading", "all"]
    assert content["arms"]["all"]["similarity, second recognizer"]["count"] == 5
    assert set(content["difference from text only"]) == {"joint", "identity", "shading", "all"}
    assert len(content["real"]) == 2 and content["criteria"]
    pictures = sorted((finished / "images" / "all").glob("*.png"))
    assert len(pictures) == 5 and Image.open(pictures[0]).size == (32, 32)
    assert read_provenance(pictures[0])["has_reference_face"] is True
    page = (finished / "report.html").read_text()
    assert "data:image/png" in page
    assert "Prompt accuracy minus that of text only" in page and "prompts that name it" in page
    assert "shading map fitted to it" in page and "true landmarks" in page and "few prompts name" in page
    hair = content["difference from text only"]["all"]["prompt accuracy, hair_color"]
    assert hair["count"] == content["arms"]["text"]["prompt accuracy, hair_color"]["count"]
    people = min(5, len(np.unique(load_arrays(tiny_dataset, "test").identity)))
    tile = 128 + 6  # px, with the gap
    assert Image.open(finished / "examples.png").size == (134 + 6 + 7 * tile, 60 + people * tile + 6)


def test_arms_differ_and_lost_pictures_come_back_the_same(finished, arguments):
    first = {arm: np.array(Image.open(finished / "images" / arm / "00003.png")) for arm in ("text", "joint", "all")}
    assert (first["text"] != first["joint"]).any() and (first["joint"] != first["all"]).any()
    (finished / "images" / "all" / "00003.png").unlink()
    cut = finished / "images" / "text" / "00003.png"
    cut.write_bytes(cut.read_bytes()[:-200])  # as a full disk leaves it
    stamp = (finished / "images" / "all" / "00002.png").stat().st_mtime_ns
    assert main([*arguments, "--out", str(finished)]) == 0
    assert (finished / "images" / "all" / "00002.png").stat().st_mtime_ns == stamp  # not made again
    again = np.array(Image.open(finished / "images" / "all" / "00003.png")).astype(int)
    assert np.abs(again - first["all"]).max() <= 1  # alone in its batch now: sums may round differently
    assert np.abs(np.array(Image.open(cut)).astype(int) - first["text"]).max() <= 1


def test_the_sheet_shows_the_map_that_the_arms_see(pipeline_export, tiny_dataset):
    pipeline, arrays = load_pipeline(pipeline_export, device="cpu"), load_arrays(tiny_dataset, "test")
    maps = fitted_maps(pipeline, [2, 5], arrays)
    for row, found in maps.items():
        reference = {"image": np.array(arrays.images[row]), "landmarks": np.array(arrays.landmarks_5[row])}
        output = pipeline("a person", **reference, num_inference_steps=1)
        np.testing.assert_array_equal(found, np.asarray(output.shading_maps[0]))
    assert maps.keys() == {2, 5} and (maps[2] != maps[5]).any()
    pipeline.shading_channel = None
    assert fitted_maps(pipeline, [2], arrays) == {}


def test_an_arm_without_what_draws_its_maps_is_refused_at_once(pipeline_export, arguments, tmp_path, capsys):
    pipeline = load_pipeline(pipeline_export, device="cpu")
    pipeline.register_modules(face_fitter=None)
    pipeline.save_pretrained(tmp_path / "export")
    assert main([*arguments, "--model", str(tmp_path / "export"), "--out", str(tmp_path / "out")]) == 2
    assert "has no face_fitter, whose shading maps arm shading needs" in capsys.readouterr().err
    assert not (tmp_path / "out" / "images").exists()


def test_a_portraits_hidden_hair_is_no_part_of_what_it_shows(tiny_dataset):
    arrays = load_arrays(tiny_dataset, "train")
    bald = arrays.attribute_values("hair_length") == "bald"
    assert bald.any() and (arrays.attribute_values("hair_color")[bald] != "").all()
    labels = labels_of(arrays)
    assert (labels.attributes["hair_color"][bald] == "").all() and (labels.attributes["hair_color"] != "").any()
    for row, descriptions in enumerate(labels.descriptions):
        for description in descriptions:
            assert all(labels.attributes[name][row] == value for name, value in description.names.items())


def test_another_run_in_the_same_folder_is_refused(finished, arguments, capsys):
    assert main([*arguments, "--out", str(finished), "--seed", "9"]) == 2
    assert "seed differ" in capsys.readouterr().err


def test_settings_can_be_chosen_on_other_people(finished, arguments, tiny_dataset, tmp_path):
    words = [*arguments, "--arms", "text", "--split", "validation", "--device", "cpu", "--out", str(tmp_path)]
    assert main(words) == 0
    run, test = (json.loads((out / "run.json").read_text()) for out in (tmp_path, finished))
    assert run["data"] == load_arrays(tiny_dataset, "validation").content_hash != test["data"]


def test_arguments_that_model_or_data_do_not_allow(finished, arguments, tiny_dataset, capsys):
    assert main([*arguments, "--out", str(finished), "--steps", "1001"]) == 2
    assert "--steps must be at most 1000" in capsys.readouterr().err
    arrays = load_arrays(tiny_dataset, "test")
    require_gallery(arrays)
    with pytest.raises(DataError, match=r"--data .*index 0"):
        require_gallery(replace(arrays, index=arrays.index + 1))


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "unet/config.json", "adapter.json"])
def test_settings_of_the_model_count_as_the_model(name, tmp_path):
    for part in ("scheduler/scheduler_config.json", "unet/config.json", "adapter.json", "unet/metrics.json"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text('{"a": 1}')
    before = model_hash(tmp_path)
    (tmp_path / "unet" / "metrics.json").write_text("{}")
    (tmp_path / "README.md").write_text("a card")
    assert model_hash(tmp_path) == before
    (tmp_path / name).write_text('{"a": 2}')
    assert model_hash(tmp_path) != before


def test_pictures_of_unknown_origin_are_not_taken_over(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match=r"/images .*/run\.json.*--out"):
        claim_folder(tmp_path, {"seed": 1})
    assert not (tmp_path / "run.json").exists()
    (tmp_path / "run.json").write_text('{"seed"')
    with pytest.raises(ConfigError, match=r"/run\.json .*line 1 column 8"):
        claim_folder(tmp_path, {"seed": 1})
    (tmp_path / "run.json").write_text('{"seed": 1}')
    claim_folder(tmp_path, {"seed": 1})
    with pytest.raises(ConfigError, match=rf"^{tmp_path} .*\bplan, code\b.*--out"):
        claim_folder(tmp_path, {"seed": 1, "plan": "a", "code": "b"})
