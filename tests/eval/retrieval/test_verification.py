"""Verification of rendered photos of a folder, and LFW's file of pairs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.retrieval.verification import draw_pairs, main, read_pairs
from faceclip.data.arrays import load_arrays
from faceclip.errors import DataError, EmptyDatasetError

FILES = [(name, Path(f"{name}_{n:04d}.jpg")) for name in ("Ann", "Bob") for n in (1, 2, 3)]


def test_pairs_of_lfw_are_rows_of_the_photos(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("2\t1\nAnn\t1\t3\nAnn\t2\tBob\t1\nBob\t1\t2\nBob\t3\tAnn\t3\n")
    pairs = read_pairs(path, FILES)
    assert pairs.first.tolist() == [0, 1, 3, 5] and pairs.second.tolist() == [2, 3, 4, 2]
    assert pairs.same.tolist() == [True, False, True, False] and pairs.fold.tolist() == [0, 0, 1, 1] and pairs.official
    for text, place in (("2 1\nAnn 1 9\n", "line 2.*Ann 9"), ("2 1\nAnn 1\n", "line 2"), ("Ann\n", "line 1")):
        path.write_text(text)
        with pytest.raises(DataError, match=place):
            read_pairs(path, FILES)


def test_drawn_folds_share_no_person():
    people = np.repeat([f"p{n}" for n in range(40)], 3)
    pairs = draw_pairs(people, each=5)
    assert not pairs.official and pairs.same.mean() == pytest.approx(0.5)
    folds = [set(people[pairs.first[pairs.fold == n]]) | set(people[pairs.second[pairs.fold == n]]) for n in range(10)]
    assert sum(map(len, folds)) == len(set.union(*folds))
    assert (people[pairs.first] == people[pairs.second]).tolist() == pairs.same.tolist()
    with pytest.raises(EmptyDatasetError, match="twenty persons"):
        draw_pairs(people[:30])


def test_one_person_cannot_be_verified(tmp_path, capsys):
    words = ["--photos", str(tmp_path), "--licence", "L", "--origin", "O", "--out", str(tmp_path / "out")]
    assert main([*words, "--people", "1"]) == 2
    assert "--people" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_measures_and_says_whose_photos_they_are(tiny_dataset, tmp_path, capsys):
    arrays = load_arrays(tiny_dataset, "train")
    for row, person in enumerate(arrays.identity):
        folder = tmp_path / "photos" / f"p{person}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(arrays.images[row])).save(folder / f"p{person}_{arrays.index[row] + 1:04d}.png")
    first, second = (f"p{person}" for person in np.unique(arrays.identity)[:2])
    lines = [f"{first} 1 2", f"{second} 1 2", f"{first} 1 {second} 1", f"{first} 2 {second} 2"] * 2
    (tmp_path / "pairs.txt").write_text("2 2\n" + "\n".join(lines) + "\n")
    words = [
        "--photos",
        str(tmp_path / "photos"),
        "--pairs",
        str(tmp_path / "pairs.txt"),
        "--out",
        str(tmp_path / "out"),
    ]
    words += ["--recognizer", "shipped", "--people", "6"]
    assert main(words) == 2
    assert "--licence" in capsys.readouterr().err
    assert main([*words, "--licence", "CC0-1.0", "--origin", "rendered"]) == 0
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["pairs"] == {"one person": 4, "two": 4, "official": True}
    assert content["data"] == {"licence": "CC0-1.0", "origin": "rendered", "persons": 6, "photos": 24}
    assert 0 <= content["accuracy"]["mean"] <= 1 and content["TAR at FAR"][0]["value"] is None  # 4 impostors
    assert len(content["recognizer"]["sha256"]) == 64 and 0 <= content["failure to enrol"] < 1
    assert "CC0-1.0" in (tmp_path / "out" / "report.html").read_text()
