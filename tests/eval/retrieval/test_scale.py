"""Planted galleries, their cost beside FAISS, and the command."""

import json

import faiss
import numpy as np
import pytest

from eval.retrieval.cost import compare_with_faiss
from eval.retrieval.planted import plant
from eval.retrieval.scale import Labelled, find_among_distractors, main
from faceclip.errors import ConfigError, EmptyDatasetError


def test_planted_people_are_as_alike_as_asked():
    planted = plant(3000, 50, width=256, each=3, likeness=0.4)
    vectors = faiss.rev_swig_ptr(planted.index.get_xb(), 3000 * 256).reshape(3000, 256)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert (vectors[0::3] * vectors[1::3]).sum(axis=1).mean() == pytest.approx(0.4, abs=0.01)
    assert abs((vectors[0::3][:-1] * vectors[1::3][1:]).sum(axis=1).mean()) < 0.01
    same = [
        vectors[planted.label == person] @ query for person, query in zip(planted.asked, planted.queries, strict=True)
    ]
    assert np.concatenate(same).mean() == pytest.approx(0.4, abs=0.02)
    with pytest.raises(ConfigError, match="likeness"):
        plant(10, 1, likeness=1)
    with pytest.raises(ConfigError, match="width"):
        plant(10, 1, width=2)


def test_cost_says_what_was_searched_and_finds_planted_people():
    cost = compare_with_faiss(plant(2000, 300, width=64, likeness=0.6), block=128)
    assert (cost.gallery, cost.queries, cost.width, cost.threads) == (2000, 300, 64, 1)
    assert cost.rank_1 > 0.99 and 0.9 < cost.mean_average_precision <= 1
    assert cost.ratio == pytest.approx(cost.ours_seconds / cost.faiss_seconds) and cost.memory_gib > 0.01


def test_a_portrait_without_a_face_is_never_found():
    vectors = np.eye(8, dtype=np.float32)[np.repeat(np.arange(4), 2)]
    found = np.ones(8, bool)
    people = [f"p{n}" for n in np.repeat(np.arange(4), 2)]
    labelled = Labelled(vectors=vectors, found=found, people=people, facts={})
    assert find_among_distractors(labelled, [0])[0][1].value == 1
    found = np.array([1, 1, 1, 0, 0, 1, 1, 1], bool)  # a probe, and another person's portrait of the gallery
    blind = Labelled(vectors=vectors * found[:, None], found=found, people=people, facts={})
    assert find_among_distractors(blind, [0])[0][1].value == 0.5
    with pytest.raises(EmptyDatasetError, match="two portraits"):
        find_among_distractors(Labelled(vectors=vectors, found=found, people=list("abcdefgh"), facts={}), [0])


def test_one_person_in_the_gallery_is_refused():
    vectors, people = np.eye(4, dtype=np.float32), ["anna", "anna", "ben", "ben"]
    for found in ([1, 1, 0, 1], [1, 1, 0, 0]):
        seen = np.array(found, bool)
        labelled = Labelled(vectors=vectors * seen[:, None], found=seen, people=people, facts={})
        with pytest.raises(EmptyDatasetError, match="two persons"):
            find_among_distractors(labelled, [0, 10])


def test_photos_with_made_captions_need_terms(captioned_photos, tmp_path, capsys):
    words = ["--out", str(tmp_path / "out"), "--gallery", "0", "--data", str(captioned_photos)]
    assert main([*words, "--recognizer", "shipped", "--distractors", "0"]) == 2
    assert "--licence" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_measures_a_planted_gallery_and_renders(tiny_dataset, tmp_path, capsys):
    words = ["--out", str(tmp_path), "--gallery", "600", "--queries", "40", "--width", "32", "--kinds", "flat,ivfpq"]
    words += ["--data", str(tiny_dataset), "--recognizer", "shipped", "--distractors", "0,200"]
    assert main(words) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert [speed["kind"] for speed in content["kinds"]] == ["flat", "ivfpq"] and content["kinds"][0]["recall"] == 1
    assert content["cost"]["gallery"] == 600 and content["data"]["licence"] == "CC0-1.0"
    none, many = (point["rank-1"]["value"] for point in content["distractors"])
    assert none >= many and len(content["DIR at FPIR"]) == 3
    page = (tmp_path / "report.html").read_text()
    assert "Planted gallery" in page and "distractors" in page


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--kinds", "tree"], "--kinds"),
        (["--distractors", "many"], "--distractors"),
        (["--gallery", "0"], "--gallery"),
        (["--photos", "a", "--data", "b"], "--photos"),
        (["--photos", "a", "--gallery", "0"], "--licence"),
        (["--photos", "a", "--people", "0"], "--people"),
        (["--data", "a", "--people", "1"], "--people"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, named, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), *words]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()
